import { Agent, request, type IncomingHttpHeaders } from 'node:http';

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

  constructor(message: string, wasSent: boolean) {
    super(message);
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
  /** Lets the client go away. */
  readonly signal?: AbortSignal;
}

/** A client with connections that are kept; as a library in a test's hand it says exactly what is known of an outcome. */
export class HttpClient implements Disposable {
  readonly #key: string;
  readonly #agent: Agent;

  constructor(key: string, maxSockets = Infinity) {
    this.#key = key;
    this.#agent = new Agent({ keepAlive: true, maxSockets, maxFreeSockets: 256 });
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
        reject(new NoAnswer(error.message, wasSent));
      };
      const asked = request(
        url,
        {
          method,
          agent: this.#agent,
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
      asked.on('socket', (socket) => {
        if (!socket.connecting) wasSent = true;
        else socket.once('connect', () => (wasSent = true));
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
