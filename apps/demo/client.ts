import { setTimeout as delay } from 'node:timers/promises';

export interface BrokerAddress {
  readonly url: string;
  readonly apiKey: string;
}

export interface Answer {
  readonly status: number;
  /** The very text of the body. */
  readonly text: string;
}

export interface CallOptions {
  readonly body?: string;
  readonly idempotencyKey?: string;
  /** Statuses that are answers, beside those below 300; all others are thrown. */
  readonly expected?: readonly number[];
  /** Closes the connection. */
  readonly signal?: AbortSignal;
  /** Makes a call that is repeated if need be; 30 s by default. */
  readonly deadlineMs?: number;
}

/** The broker refused a call. */
export class RefusedError extends Error {
  readonly status: number;

  constructor(call: string, { status, text }: Answer) {
    super(`${call} was answered ${status}: ${text.slice(0, 500)}`);
    this.name = 'RefusedError';
    this.status = status;
  }
}

// what is answered so may be sent again, and is done then at the latest
const passing = [409, 429, 503];
const pauseMs = 200;

/** Talks to the API under /api/v1. */
export class Client {
  readonly #address: BrokerAddress;
  readonly #signal: AbortSignal;
  /** Calls that were sent again because the broker could not take them, or their connection broke. */
  repeated = 0;

  /** `signal` ends all calls. */
  constructor(address: BrokerAddress, signal: AbortSignal) {
    this.#address = address;
    this.#signal = signal;
  }

  /**
   * Makes one call. All calls of the demo are safe to repeat, so where the broker asks for that (Retry-After), or the
   * connection breaks, the call is repeated until its deadline.
   */
  async call(method: string, path: string, options: CallOptions = {}): Promise<Answer> {
    const deadline = performance.now() + (options.deadlineMs ?? 30_000);
    for (;;) {
      const answer = await this.#tryOnce(method, path, options).catch((error: unknown) => {
        const isGivenUp = this.#signal.aborted || options.signal?.aborted === true;
        if (isGivenUp || performance.now() > deadline) throw error;
        return undefined;
      });
      if (answer?.status !== undefined && isAnswer(answer.status, options)) return answer;
      const wait = answer === undefined ? pauseMs : retryAfterMs(answer);
      if (wait === undefined || performance.now() + wait > deadline) {
        throw new RefusedError(`${method} ${path}`, answer ?? { status: 0, text: '' });
      }
      this.repeated += 1;
      await delay(wait, undefined, { signal: this.#signal });
    }
  }

  async #tryOnce(
    method: string,
    path: string,
    options: CallOptions,
  ): Promise<Answer & { readonly retryAfter: string | null }> {
    const { body, idempotencyKey, signal } = options;
    const response = await fetch(`${this.#address.url}/api/v1${path}`, {
      method,
      headers: {
        authorization: `Bearer ${this.#address.apiKey}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
      },
      signal: signal === undefined ? this.#signal : AbortSignal.any([signal, this.#signal]),
      ...(body === undefined ? {} : { body }),
    });
    // a byte that is no UTF-8 must not be mistaken for the character that stands for such bytes
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    const text = decoder.decode(await response.arrayBuffer());
    return { status: response.status, text, retryAfter: response.headers.get('retry-after') };
  }
}

function isAnswer(status: number, { expected = [] }: CallOptions): boolean {
  return (status >= 200 && status < 300) || expected.includes(status);
}

function retryAfterMs(answer: Answer & { readonly retryAfter: string | null }): number | undefined {
  if (!passing.includes(answer.status) || answer.retryAfter === null) return undefined;
  return Math.max(Number(answer.retryAfter) * 1000, pauseMs) || pauseMs;
}
