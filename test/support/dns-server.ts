import { createSocket } from 'node:dgram';
import { once } from 'node:events';

export interface DnsServer extends AsyncDisposable {
  /** `127.0.0.1:port`, as nginx's `resolver` takes it. */
  readonly address: string;
  /** What the name answers with from now on: IPv4 addresses. */
  set(addresses: readonly string[]): void;
  /** Questions for the name that were answered. */
  readonly answered: number;
}

const A = 1;
const nameError = 3;

/** A name server (RFC 1035, over UDP) that knows one name and its A records, as the one of Docker knows a service's tasks. */
export async function startDnsServer(name: string): Promise<DnsServer> {
  let addresses: readonly string[] = [];
  let answered = 0;
  const socket = createSocket('udp4');
  socket.on('message', (query, { address, port }) => {
    const question = readQuestion(query);
    if (question === undefined) return;
    const isKnown = question.name === name && addresses.length > 0;
    if (isKnown) answered += 1;
    const records = isKnown && question.type === A ? addresses.map(recordOf) : [];
    const head = Buffer.alloc(12);
    query.copy(head, 0, 0, 2);
    // an answer, with authority, recursion wanted and available
    head.writeUInt16BE(0x8580 | (isKnown ? 0 : nameError), 2);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(records.length, 6);
    socket.send(Buffer.concat([head, question.bytes, ...records]), port, address);
  });
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  return {
    address: `127.0.0.1:${socket.address().port}`,
    set(next) {
      addresses = next;
    },
    get answered() {
      return answered;
    },
    async [Symbol.asyncDispose]() {
      socket.close();
      await once(socket, 'close');
    },
  };
}

interface Question {
  readonly name: string;
  readonly type: number;
  readonly bytes: Buffer;
}

function readQuestion(query: Buffer): Question | undefined {
  const labels: string[] = [];
  let at = 12;
  for (;;) {
    const length = query[at];
    if (length === undefined || length > 63) return undefined;
    at += 1;
    if (length === 0) break;
    labels.push(query.toString('ascii', at, at + length));
    at += length;
  }
  if (query.length < at + 4) return undefined;
  const name = labels.join('.').toLowerCase();
  return { name, type: query.readUInt16BE(at), bytes: query.subarray(12, at + 4) };
}

/** The question's name by a pointer, type A, class IN, one second, four bytes. */
function recordOf(address: string): Buffer {
  const head = Buffer.from('c00c00010001000000010004', 'hex');
  return Buffer.concat([head, Buffer.from(address.split('.').map(Number))]);
}
