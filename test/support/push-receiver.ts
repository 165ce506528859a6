import { once } from 'node:events';
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import { type AddressInfo, createServer as createTcpServer, type Socket } from 'node:net';

import { Webhook } from 'standardwebhooks';

import { eventually, type EventuallyOptions } from './eventually.ts';

/** An answer that is complete. */
export interface PushAnswer {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  /** Milliseconds between the end of the request and the answer (0). */
  readonly afterMs?: number;
}

/** What becomes of one request. `hang`: it is read and never answered; `drop`: the connection is cut when its head is there. */
export type Reaction = PushAnswer | 'hang' | 'drop' | 'drop_after_reading';

/** What is known of a request before its body. */
export interface PushHead {
  readonly path: string;
  /** `webhook-id`: the event's id, the same in each attempt. */
  readonly eventId: string;
  /** `broker-delivery-attempt`. */
  readonly attempt: number;
  /** Of this path: 1 is the first. */
  readonly number: number;
}

/** The same for each request, or decided by its head. */
export type Behaviour = Reaction | ((head: PushHead) => Reaction);

export interface PushRequest extends PushHead {
  readonly headers: IncomingHttpHeaders;
  /** When its head was read, by performance.now(). */
  readonly arrivedAt: number;
  /** Empty until it is read, and where bodies are not kept. */
  body: string;
  /** `open`: not answered yet; `answered`: all of the answer was handed to the system; `broken`: it was not. */
  state: 'open' | 'answered' | 'broken';
  /** Of the answer. */
  status: number | undefined;
}

export interface EndpointOptions {
  readonly behaviour?: Behaviour;
  /** Whether `body` is kept after the signature was checked (true). */
  readonly keepsBodies?: boolean;
  /** Called when a request was read, before it is answered. */
  readonly onRead?: (request: PushRequest) => void;
  /** Called when a request is `answered` or `broken`. */
  readonly onEnd?: (request: PushRequest) => void;
}

const accepted: PushAnswer = { status: 204 };

/** Every n-th request of an endpoint meets with this reaction, the others are accepted. */
export function everyNth(n: number, reaction: Reaction): Behaviour {
  return ({ number }) => (number % n === 0 ? reaction : accepted);
}

/** One path of a receiver: what came there, and what it does next. */
export class PushEndpoint {
  readonly url: string;
  /** May be changed at any time; what is under way ends as it began. */
  behaviour: Behaviour;
  /** Of the subscription (`whsec_…`); from then on each signature is checked. */
  secret: string | undefined;
  readonly requests: PushRequest[] = [];
  /** What was wrong with signatures, in words. */
  readonly badSignatures: string[] = [];
  /** Signatures that were found good. */
  verified = 0;
  readonly #options: EndpointOptions;
  readonly #byEvent = new Map<string, PushRequest[]>();

  constructor(url: string, options: EndpointOptions) {
    this.url = url;
    this.behaviour = options.behaviour ?? accepted;
    this.#options = options;
  }

  /** The ids of the events that came, each once. */
  get eventIds(): string[] {
    return [...this.#byEvent.keys()];
  }

  /** All requests with one event, in the order in which they came. */
  requestsOf(eventId: string): readonly PushRequest[] {
    return this.#byEvent.get(eventId) ?? [];
  }

  /** Waits until requests with so many distinct events have come. */
  async arrived(events: number, options: EventuallyOptions = {}): Promise<void> {
    const look = (): void => {
      const { size } = this.#byEvent;
      if (size < events) throw new Error(`${size} of ${events}`);
    };
    await eventually(look, { what: `${events} events at ${this.url}`, ...options });
  }

  /** Notes a request and decides about it. */
  begin(path: string, headers: IncomingHttpHeaders): [PushRequest, Reaction] {
    const request: PushRequest = {
      path,
      eventId: String(headers['webhook-id'] ?? ''),
      attempt: Number(headers['broker-delivery-attempt']),
      number: this.requests.length + 1,
      headers,
      arrivedAt: performance.now(),
      body: '',
      state: 'open',
      status: undefined,
    };
    this.requests.push(request);
    const known = this.#byEvent.get(request.eventId);
    if (known === undefined) this.#byEvent.set(request.eventId, [request]);
    else known.push(request);
    const { behaviour } = this;
    return [request, typeof behaviour === 'function' ? behaviour(request) : behaviour];
  }

  /** The body is there. */
  read(request: PushRequest, body: string): void {
    request.body = body;
    if (this.secret !== undefined) this.#verify(request, this.secret);
    this.#options.onRead?.(request);
    if (this.#options.keepsBodies === false) request.body = '';
  }

  end(request: PushRequest, state: 'answered' | 'broken', status?: number): void {
    if (request.state !== 'open') return;
    request.state = state;
    request.status = status;
    this.#options.onEnd?.(request);
  }

  #verify({ headers, body, eventId }: PushRequest, secret: string): void {
    try {
      const names = headers as Record<string, string>;
      new Webhook(secret).verify(body, names, { jsonParse: false });
      this.verified += 1;
    } catch (error) {
      this.badSignatures.push(`${eventId}: ${(error as Error).message}`);
    }
  }
}

/** A server for push on a port of an address of this machine, with any number of endpoints that record, and misbehave on command. */
export class PushReceiver implements Disposable {
  readonly #server: Server;
  readonly #endpoints = new Map<string, PushEndpoint>();
  readonly #timers = new Set<NodeJS.Timeout>();
  /** Requests to paths that nobody made an endpoint of. */
  readonly strays: string[] = [];

  private constructor() {
    // Idle connections stay: one that closes while a request is on its way looks like a failure of the broker.
    this.#server = createServer({ keepAliveTimeout: 120_000 }, (request, response) => {
      this.#take(request, response);
    });
  }

  static async start(address = '127.0.0.1'): Promise<PushReceiver> {
    const receiver = new PushReceiver();
    receiver.#server.listen(0, address);
    await once(receiver.#server, 'listening');
    return receiver;
  }

  get url(): string {
    const { address, port } = this.#server.address() as AddressInfo;
    return `http://${address}:${port}`;
  }

  /** Makes an endpoint of a path, as `/hook`. */
  endpoint(path: string, options: EndpointOptions = {}): PushEndpoint {
    const endpoint = new PushEndpoint(`${this.url}${path}`, options);
    this.#endpoints.set(path, endpoint);
    return endpoint;
  }

  /** Breaks all connections, with whatever hangs on them. */
  cut(): void {
    this.#server.closeAllConnections();
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#server.close();
    this.#server.closeAllConnections();
  }

  #take(incoming: IncomingMessage, response: ServerResponse): void {
    const path = incoming.url ?? '';
    const endpoint = this.#endpoints.get(path);
    if (endpoint === undefined) {
      this.strays.push(`${incoming.method} ${path}`);
      response.writeHead(404).end();
      return;
    }
    const [request, reaction] = endpoint.begin(path, incoming.headers);
    response.once('close', () => {
      endpoint.end(request, response.writableFinished ? 'answered' : 'broken', response.statusCode);
    });
    if (reaction === 'drop') return void incoming.socket.destroy();
    const pieces: Buffer[] = [];
    incoming.on('data', (piece: Buffer) => pieces.push(piece));
    incoming.once('error', () => undefined);
    incoming.once('end', () => {
      endpoint.read(request, Buffer.concat(pieces).toString());
      if (reaction === 'drop_after_reading') incoming.socket.destroy();
      else if (reaction !== 'hang') this.#answer(response, reaction);
    });
  }

  #answer(response: ServerResponse, { status, headers, body = '', afterMs = 0 }: PushAnswer): void {
    const answer = (): void => void response.writeHead(status, { ...headers }).end(body);
    if (afterMs === 0) return answer();
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      answer();
    }, afterMs);
    this.#timers.add(timer);
  }
}

export interface DeafServer extends Disposable {
  readonly url: string;
  /** Connections that it has taken so far. */
  readonly taken: number;
}

/** Takes connections, and never reads a byte of what comes on them. */
export async function startDeafServer(): Promise<DeafServer> {
  const sockets = new Set<Socket>();
  const server = createTcpServer({ pauseOnConnect: true }, (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    get taken() {
      return sockets.size;
    },
    [Symbol.dispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
