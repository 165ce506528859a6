// A server that only answers: what the client of the bench reaches with it, the client is able to do.
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

const answer = '{"id":"1234567890123456789","duplicate":false}';

const server = createServer((request, response) => {
  request.resume();
  request.once('end', () => {
    const headers = { 'content-type': 'application/json', 'content-length': answer.length };
    response.writeHead(202, headers).end(answer);
  });
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
process.stdout.write(`${(server.address() as AddressInfo).port}\n`);
// ends with whoever started it
process.stdin.once('close', () => process.exit()).resume();
