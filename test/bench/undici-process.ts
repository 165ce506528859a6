// node undici-process.ts <port> <connections>: POSTs an event's data over and over, with nothing around it. What a worker
// reaches beside this is what it costs to claim, sign and settle.
import { Pool } from 'undici';
import { eventText } from './events.ts';

const [port = '', connections = ''] = process.argv.slice(2);
const pool = new Pool(`http://127.0.0.1:${port}`, { connections: Number(connections) });
const headers = { 'content-type': 'application/json' };
const bodies = Array.from({ length: 1000 }, (_, index) => Buffer.from(eventText(index)));

let next = 0;

async function post(): Promise<void> {
  for (;;) {
    next += 1;
    const body = bodies[next % bodies.length] ?? Buffer.alloc(0);
    const answer = await pool.request({ method: 'POST', path: '/', headers, body });
    await answer.body.dump();
  }
}

// ends with whoever started it, in the middle of its requests
process.stdin.once('close', () => process.exit()).resume();
await Promise.all(Array.from({ length: Number(connections) }, post));
