import { type Server } from 'node:http';
import { Server as NetServer, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** How long a client that keeps its connection has time to hear, by `connection: close`, that it should take another. */
const farewellMs = 1000;
const lookMs = 20;

/**
 * The open connections of a server, and which of them carry a request. Node's own `closeIdleConnections` leaves those open
 * that have never sent one, and closes those on which one is just arriving.
 */
export class Connections {
  readonly #server: Server;
  /** With the number of requests that are being answered. */
  readonly #open = new Map<Socket, number>();

  constructor(server: Server) {
    this.#server = server;
    server.on('connection', (socket: Socket) => {
      this.#open.set(socket, 0);
      socket.once('close', () => this.#open.delete(socket));
    });
    server.on('request', ({ socket }, response) => {
      this.#count(socket, 1);
      response.once('close', () => this.#count(socket, -1));
    });
  }

  /**
   * Accepts no new connection, answers on the open ones for a moment more, then ends those that carry no request. A
   * connection that were ended at once could be bringing one, whose sender would not know what became of it.
   */
  async sayFarewell(deadline: AbortSignal): Promise<void> {
    // http's own close() would end the idle ones
    NetServer.prototype.close.call(this.#server);
    const until = performance.now() + farewellMs;
    while (this.#open.size > 0 && performance.now() < until && !deadline.aborted) {
      await delay(lookMs, undefined, { signal: deadline }).catch(() => undefined);
    }
    for (const [socket, requests] of this.#open) if (requests === 0) socket.destroy();
  }

  /** Waits for the requests that are being answered; at the deadline they are cut. */
  async drain(deadline: AbortSignal): Promise<void> {
    while (this.#open.size > 0 && !deadline.aborted) {
      await delay(lookMs, undefined, { signal: deadline }).catch(() => undefined);
      for (const [socket, requests] of this.#open) if (requests === 0) socket.destroy();
    }
    for (const socket of this.#open.keys()) socket.destroy();
  }

  #count(socket: Socket, requests: number): void {
    const before = this.#open.get(socket);
    if (before !== undefined) this.#open.set(socket, before + requests);
  }
}
