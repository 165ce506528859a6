import { once } from 'node:events';
import { connect, type Socket } from 'node:net';

export interface HttpAnswer {
  readonly status: number;
  readonly body: string;
}

export interface HttpTarget {
  readonly port: number;
  readonly apiKey: string;
}

/** The bytes of a POST, made once and sent as often as is wanted. */
export function postRequest({ port, apiKey }: HttpTarget, path: string, body: string): Buffer {
  const length = Buffer.byteLength(body);
  return Buffer.from(
    `POST ${path} HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\nauthorization: Bearer ${apiKey}\r\n` +
      `content-type: application/json\r\ncontent-length: ${length}\r\n\r\n${body}`,
  );
}

const headEnd = Buffer.from('\r\n\r\n');

/**
 * One keep-alive connection with one request at a time. Not `node:http`: on a machine of two cores its client takes as much
 * time as the server that is measured. Answers must have a content-length, as all of the API's have.
 */
export class HttpConnection {
  readonly #socket: Socket;
  #received: Buffer[] = [];
  #length = 0;
  /** Bytes of the answer that is coming, as soon as its head is there. */
  #expected = 0;
  #waiting: PromiseWithResolvers<HttpAnswer> | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (piece: Buffer) => this.#take(piece));
    socket.on('error', (error) => this.#waiting?.reject(error));
    socket.on('close', () => this.#waiting?.reject(new Error('the connection was closed')));
  }

  static async open(port: number): Promise<HttpConnection> {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    await once(socket, 'connect');
    return new HttpConnection(socket);
  }

  async send(request: Buffer): Promise<HttpAnswer> {
    this.#waiting = Promise.withResolvers<HttpAnswer>();
    this.#socket.write(request);
    return this.#waiting.promise;
  }

  close(): void {
    this.#waiting = undefined;
    this.#socket.destroy();
  }

  #take(piece: Buffer): void {
    this.#received.push(piece);
    this.#length += piece.length;
    if (this.#expected === 0) {
      const all = this.#joined();
      const end = all.indexOf(headEnd);
      if (end < 0) return;
      const [, length] = /\r\ncontent-length: (\d+)/i.exec(all.toString('latin1', 0, end)) ?? [];
      if (length === undefined) {
        this.#waiting?.reject(new Error(`no content-length: ${all.toString('latin1', 0, end)}`));
        return;
      }
      this.#expected = end + headEnd.length + Number(length);
    }
    if (this.#length >= this.#expected) this.#answer();
  }

  #answer(): void {
    const all = this.#joined();
    const end = all.indexOf(headEnd);
    const answer = {
      // HTTP/1.1 202 …
      status: Number(all.toString('latin1', 9, 12)),
      body: all.toString('utf8', end + headEnd.length, this.#expected),
    };
    this.#received = [];
    this.#length = 0;
    this.#expected = 0;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.resolve(answer);
  }

  #joined(): Buffer {
    if (this.#received.length > 1) this.#received = [Buffer.concat(this.#received)];
    return this.#received[0] ?? Buffer.alloc(0);
  }
}
