import { isIP, type Socket } from 'node:net';
import { buildConnector, Client, type Dispatcher } from 'undici';
import { EgressDenied, type EgressPolicy } from '#runtime/egress.ts';

const CONNECT_TIMEOUT_MS = 5000;
const KEEP_ALIVE_MAX_MS = 60_000;
const HEADERS_BYTES_MAX = 16_384;

type Connector = (
  options: buildConnector.Options,
  callback: buildConnector.Callback,
) => Socket | undefined;

/** Connects to allowed addresses only: a literal one is checked here, a name by the look-up, and what came of it again. */
function createConnector(policy: EgressPolicy): Connector {
  const connect = buildConnector({
    allowH2: false,
    timeout: CONNECT_TIMEOUT_MS,
    lookup: policy.lookup,
    // whatever NODE_TLS_REJECT_UNAUTHORIZED says
    rejectUnauthorized: true,
  });
  return (options, callback) => {
    if (isIP(options.hostname) !== 0 && !policy.isAllowed(options.hostname)) {
      process.nextTick(callback, new EgressDenied(options.hostname), null);
      return undefined;
    }
    // Undici's types keep it to themselves that the connector returns the socket.
    const socket = connect(options, callback) as unknown as Socket;
    // First, so that not even the first bytes of a TLS handshake go elsewhere.
    socket.prependOnceListener('connect', () => {
      const { remoteAddress } = socket;
      if (remoteAddress === undefined) {
        socket.destroy(Object.assign(new Error('the peer is gone'), { code: 'ECONNRESET' }));
      } else if (!policy.isAllowed(remoteAddress)) {
        socket.destroy(new EgressDenied(remoteAddress));
      }
    });
    return socket;
  };
}

/** A connection to one origin that carries one request at a time. It is made with the first, and again where it was lost. */
export class EndpointConnection {
  readonly origin: string;
  readonly #client: Client;
  #socket: Socket | undefined;

  constructor(
    origin: string,
    connector: Connector,
    onLost: (connection: EndpointConnection) => void,
  ) {
    this.origin = origin;
    this.#client = new Client(origin, {
      allowH2: false,
      pipelining: 1,
      maxHeaderSize: HEADERS_BYTES_MAX,
      keepAliveMaxTimeout: KEEP_ALIVE_MAX_MS,
      // One deadline per request covers everything, and belongs to the request.
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: (options, callback) => {
        this.#socket = connector(options, callback);
      },
    });
    this.#client.on('disconnect', () => onLost(this));
  }

  /** Whether all that was written has been handed to the system. */
  get isFlushed(): boolean {
    return this.#socket?.writableLength === 0;
  }

  dispatch(options: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler): void {
    this.#client.dispatch(options, handler);
  }

  /** Closes it at once, also while it is being made. */
  destroy(reason: Error): void {
    // the client, so that it connects no more; the socket, which a client does not know before it is connected
    void this.#client.destroy(reason);
    this.#socket?.destroy(reason);
  }
}

/**
 * The connections of a process to all endpoints. Those that are idle end with undici's keep-alive (4 s, or what the
 * server says, less 2 s), and where there are too many the one that is idle for the longest time goes first; so origins
 * leave nothing behind. (Undici's Agent bounds origins too, but by refusing requests; and its Pool cannot take back a
 * request whose connection is still being made.)
 */
export class EndpointConnections {
  readonly #connector: Connector;
  readonly #idleMax: number;
  readonly #busy = new Set<EndpointConnection>();
  /** In the order in which they became idle. */
  readonly #idle = new Set<EndpointConnection>();
  /** The same by origin. */
  readonly #idleOf = new Map<string, EndpointConnection[]>();
  #whenQuiet: (() => void) | undefined;

  constructor(policy: EgressPolicy, idleMax: number) {
    this.#connector = createConnector(policy);
    this.#idleMax = idleMax;
  }

  get busyCount(): number {
    return this.#busy.size;
  }

  get idleCount(): number {
    return this.#idle.size;
  }

  /** That something is idle for. */
  get originCount(): number {
    return this.#idleOf.size;
  }

  /** The idle connection that was used last: it is the least likely to be closed by the server at this moment. */
  takeIdle(origin: string): EndpointConnection | undefined {
    const connection = this.#idleOf.get(origin)?.at(-1);
    if (connection === undefined) return undefined;
    this.#forget(connection);
    this.#busy.add(connection);
    return connection;
  }

  open(origin: string): EndpointConnection {
    const connection = new EndpointConnection(origin, this.#connector, (lost) =>
      this.#forget(lost),
    );
    this.#busy.add(connection);
    return connection;
  }

  /** Its request is over, and all of the answer was read. */
  release(connection: EndpointConnection): void {
    this.#idle.add(connection);
    const ofOrigin = this.#idleOf.get(connection.origin);
    if (ofOrigin === undefined) this.#idleOf.set(connection.origin, [connection]);
    else ofOrigin.push(connection);
    const oldest = this.#idle.values().next();
    if (this.#idle.size > this.#idleMax && oldest.done !== true) this.#closeIdle(oldest.value);
    this.#leave(connection);
  }

  /** Its request is over, and it cannot carry another one. */
  discard(connection: EndpointConnection, reason: Error): void {
    connection.destroy(reason);
    this.#leave(connection);
  }

  /** Closes what is idle, and waits for the rest. */
  async close(): Promise<void> {
    if (this.#busy.size > 0) {
      await new Promise<void>((resolve) => {
        this.#whenQuiet = resolve;
      });
    }
    for (const connection of this.#idle) this.#closeIdle(connection);
  }

  #leave(connection: EndpointConnection): void {
    this.#busy.delete(connection);
    if (this.#busy.size === 0) this.#whenQuiet?.();
  }

  #closeIdle(connection: EndpointConnection): void {
    this.#forget(connection);
    connection.destroy(new Error('not needed any more'));
  }

  #forget(connection: EndpointConnection): void {
    if (!this.#idle.delete(connection)) return;
    const ofOrigin = this.#idleOf.get(connection.origin) ?? [];
    if (ofOrigin.length <= 1) this.#idleOf.delete(connection.origin);
    else ofOrigin.splice(ofOrigin.lastIndexOf(connection), 1);
  }
}
