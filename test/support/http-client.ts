import { Agent, request, type IncomingHttpHeaders } from 'node:http';
import { Agent as TlsAgent, request as tlsRequest } from 'node:https';

/** One complete answer. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  /** Undefined when the body is no JSON. */
  readonly json: unknown;
}

/** No complete answer came: the connection could not be made or broke, or the time was over. */
export class NoAnswer extends Error {
  override name = 'NoAnswer';
  /** False when it is certain that the request never left. */
  readonly wasSent: boolean;

  constructor(message: string, wasSent: boolean, options?: ErrorOptions) {
    super(message, options);
    this.wasSent = wasSent;
  }
}

export interface RequestOptions {
  readonly method?: string;
  /** Sent as JSON; a string goes as it is. */
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  /** For the whole answer (10,000). */
  readonly timeoutMs?: number;
  /** For a new connection (the same as for the whole answer). */
  readonly connectTimeoutMs?: number;
  /** Lets the client go away. */
  readonly signal?: AbortSignal;
}

/** How a client knows a server over TLS. */
export interface Trust {
  /** Certificate of the authority, as PEM. */
  readonly ca: string;
  /** What the server's certificate must be for, whatever address is asked. */
  readonly servername: string;
}

export interface ClientOptions {
  readonly maxSockets?: number;
  readonly trust?: Trust;
}

/** A client with connections that are kept; as a library in a test's hand it says exactly what is known of an outcome. */
export class HttpClient implements Disposable {
  readonly #key: string;
  readonly #agent: Agent;
  readonly #tlsAgent: TlsAgent;

  constructor(key: string, { maxSockets = Infinity, trust }: ClientOptions = {}) {
    this.#key = key;
    const kept = { keepAlive: true, maxSockets, maxFreeSockets: 256 };
    this.#agent = new Agent(kept);
    this.#tlsAgent = new TlsAgent({ ...kept, ...trust });
  }

  /** Rejects with `NoAnswer` only; any status is an answer. */
  async send(url: string, options: RequestOptions = {}): Promise<Answer> {
    const { body, headers, timeoutMs = 10_000, signal } = options;
    const text = typeof body === 'string' ? body : body === undefined ? '' : JSON.stringify(body);
    const method = options.method ?? (body === undefined ? 'GET' : 'POST');
    return new Promise((resolve, reject) => {
      let wasSent = false;
      const fail = (error: Error): void => {
        clearTimeout(timer);
        clearTimeout(connectTimer);
        reject(new NoAnswer(error.message, wasSent, { cause: error }));
      };
      const isTls = url.startsWith('https:');
      const asked = (isTls ? tlsRequest : request)(
        url,
        {
          method,
          agent: isTls ? this.#tlsAgent : this.#agent,
          ...(signal && { signal }),
          headers: {
            authorization: `Bearer ${this.#key}`,
            ...(body !== undefined && {
              'content-type': 'application/json',
              'content-length': Buffer.byteLength(text),
            }),
            ...headers,
          },
        },
        (response) => {
          const pieces: Buffer[] = [];
          response.on('data', (piece: Buffer) => pieces.push(piece));
          response.on('error', fail);
          response.on('end', () => {
            clearTimeout(timer);
            const answer = Buffer.concat(pieces).toString();
            const { statusCode: status = 0 } = response;
            resolve({ status, headers: response.headers, text: answer, json: parse(answer) });
          });
        },
      );
      const timer = setTimeout(() => asked.destroy(new Error('timed out')), timeoutMs);
      let connectTimer: NodeJS.Timeout | undefined;
      const sent = (): void => {
        wasSent = true;
        clearTimeout(connectTimer);
      };
      asked.on('socket', (socket) => {
        if (!socket.connecting) return sent();
        socket.once(isTls ? 'secureConnect' : 'connect', sent);
        const { connectTimeoutMs } = options;
        if (connectTimeoutMs === undefined) return;
        const giveUp = () => asked.destroy(new Error('no connection in time'));
        connectTimer = setTimeout(giveUp, connectTimeoutMs);
      });
      asked.on('error', fail);
      asked.end(text);
    });
  }

  /** As `send`, and throws unless the answer is a success. */
  async call<Body = unknown>(url: string, options: RequestOptions = {}): Promise<Body> {
    const answer = await this.send(url, options);
    if (answer.status >= 300) {
      throw new Error(`${options.method ?? ''} ${url}: ${answer.status} ${answer.text}`);
    }
    return answer.json as Body;
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
    this.#tlsAgent.destroy();
  }
}

/** The stable code of a problem; `http_<status>` for an answer that is none. */
export function codeOf(answer: Answer): string {
  const code = (answer.json as { code?: unknown } | undefined)?.code;
  return typeof code === 'string' ? code : `http_${answer.status}`;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
