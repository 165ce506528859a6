import {
  type Answer,
  type ClientOptions,
  HttpClient,
  NoAnswer,
  type RequestOptions,
} from '#test/support/http-client.ts';

/** Longer than a connection takes on one wire, also on a busy machine. */
const connectTimeoutMs = 1000;

/**
 * A client of a name that has several addresses: it asks them in turn, and where no connection can be made the next one, as long as there is one
 * that it has not tried. What was sent is never repeated.
 */
export class SpreadClient extends HttpClient {
  /** How often a connection could not be made, by address and cause. */
  readonly unconnected = new Map<string, number>();
  readonly #addresses: readonly string[];
  #turn = 0;

  /** `addresses`: base URLs, as `http://10.0.0.1:80`. Any URL that is sent to gets one of them in front. */
  constructor(key: string, addresses: readonly string[], options: ClientOptions = {}) {
    super(key, options);
    if (addresses.length === 0) throw new Error('a client needs an address');
    this.#addresses = addresses;
  }

  override async send(url: string, options: RequestOptions = {}): Promise<Answer> {
    const { pathname, search } = new URL(url);
    const first = this.#turn;
    this.#turn += 1;
    for (let n = 0; ; n += 1) {
      const address = this.#addresses[(first + n) % this.#addresses.length] ?? '';
      try {
        return await super.send(`${address}${pathname}${search}`, { connectTimeoutMs, ...options });
      } catch (error) {
        if (!(error instanceof NoAnswer) || error.wasSent) throw error;
        this.#count(`${address} ${causeOf(error)}`);
        if (n + 1 === this.#addresses.length) throw error;
      }
    }
  }

  #count(what: string): void {
    this.unconnected.set(what, (this.unconnected.get(what) ?? 0) + 1);
  }
}

/** The system's code, as ECONNREFUSED, where there is one. */
function causeOf({ cause, message }: NoAnswer): string {
  return (cause as NodeJS.ErrnoException | undefined)?.code ?? message;
}
