// An endpoint that accepts everything and counts: POST is a push, GET answers with how many there were.
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

let pushes = 0;

const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
  request.resume();
  if (request.method === 'GET') {
    const text = String(pushes);
    response.writeHead(200, { 'content-length': text.length }).end(text);
    return;
  }
  request.once('end', () => {
    pushes += 1;
    response.writeHead(204).end();
  });
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
process.stdout.write(`${(server.address() as AddressInfo).port}\n`);
// ends with whoever started it
process.stdin.once('close', () => process.exit()).resume();
