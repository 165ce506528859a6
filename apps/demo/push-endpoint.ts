import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';
import type { Ledger, Push, PushEnd, Way } from './ledger.ts';

export interface PushWork {
  readonly ledger: Ledger;
  readonly subscription: string;
  /** Of the subscription, to check signatures with. */
  readonly secret: string;
}

const path = '/hook';
const keepAliveMs = 60_000;
/** What is done with every so many events when they come for the first time; a number above it names the event. */
const misdeedEvery = 60;
const misdeeds: ReadonlyMap<number, Reply> = new Map([
  [10, 'failed'],
  [15, 'delayed'],
  [25, 'hung'],
  [40, 'failed'],
  [55, 'dropped'],
]);
/** The broker leaves an endpoint alone that has asked for a delay, so that is asked a few times only. */
const delaysMax = 3;
const retryAfterSeconds = 1;
const answers = {
  accepted: 204,
  failed: 500,
  rejected: 422,
  delayed: 429,
} as const satisfies Partial<Record<PushEnd, number>>;

/** How a push is to end. */
type Reply = keyof typeof answers | 'hung' | 'dropped';

/**
 * The endpoint of the push subscription: an HTTP server on this machine that checks each signature and fails some requests
 * on purpose, each in its way, when their event comes for the first time. Poison is refused until it is dead: every other
 * one for good (422), the others again and again (500).
 */
export class PushEndpoint implements AsyncDisposable {
  readonly #server: Server;
  readonly #refusals = new Map<Way, 'rejected' | 'failed'>();
  #work: PushWork | undefined;
  #firsts = 0;
  #delays = 0;

  private constructor() {
    this.#server = createServer({ keepAliveTimeout: keepAliveMs }, (request, response) => {
      // a connection that breaks shows in what became of its push
      void this.#take(request, response).catch(() => response.destroy());
    });
  }

  static async start(): Promise<PushEndpoint> {
    const endpoint = new PushEndpoint();
    endpoint.#server.listen(0, '127.0.0.1');
    await once(endpoint.#server, 'listening');
    return endpoint;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}${path}`;
  }

  /** What it is for, known once its subscription is made. */
  begin(work: PushWork): void {
    this.#work = work;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.#server.closeAllConnections();
    await closed;
  }

  async #take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const work = this.#work;
    if (work === undefined || request.url !== path) return void response.writeHead(404).end();
    const headers = request.headers as Record<string, string>;
    // a byte that is no UTF-8 must not be mistaken for the character that stands for such bytes
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    const body = decoder.decode(Buffer.concat(pieces));
    this.#checkSignature(work, headers, body);
    const push = work.ledger.pushed(work.subscription, {
      eventId: headers['webhook-id'] ?? '',
      attempt: Number(headers['broker-delivery-attempt']),
      event: {
        id: attribute(headers, 'id') ?? '',
        source: attribute(headers, 'source') ?? '',
        type: attribute(headers, 'type') ?? '',
        subject: attribute(headers, 'subject'),
        dataText: body,
      },
    });
    this.#answer(response, push, push === undefined ? 'rejected' : this.#decide(work, push));
  }

  #checkSignature({ ledger, secret }: PushWork, headers: Record<string, string>, body: string) {
    ledger.signatures += 1;
    try {
      new Webhook(secret).verify(body, headers, { jsonParse: false });
    } catch (error) {
      ledger.badSignatures += 1;
      const who = `${headers['webhook-id']} at attempt ${headers['broker-delivery-attempt']}`;
      ledger.faults.push(`the signature of ${who}: ${(error as Error).message}`);
    }
  }

  #decide({ ledger }: PushWork, { way }: Push): Reply {
    if (ledger.isRedriving) return 'accepted';
    if (way.pushes.length === 1) {
      this.#firsts += 1;
      const misdeed = misdeeds.get(this.#firsts % misdeedEvery);
      if (misdeed === 'delayed') this.#delays += 1;
      const isTooMuch = misdeed === 'delayed' && this.#delays > delaysMax;
      if (misdeed !== undefined && !isTooMuch) return misdeed;
    }
    return way.event.isPoison ? this.#refusalOf(way) : 'accepted';
  }

  #refusalOf(way: Way): 'rejected' | 'failed' {
    const refusal =
      this.#refusals.get(way) ?? (this.#refusals.size % 2 === 0 ? 'rejected' : 'failed');
    this.#refusals.set(way, refusal);
    return refusal;
  }

  #answer(response: ServerResponse, push: Push | undefined, reply: Reply): void {
    if (reply === 'hung' || reply === 'dropped') {
      if (push !== undefined) push.end = reply;
      if (reply === 'dropped') response.destroy();
      return;
    }
    response.once('close', () => {
      if (push === undefined) return;
      push.end = response.writableFinished ? reply : 'broken';
      // what dies is found in the list of dead letters
      if (push.end === 'accepted') this.#work?.ledger.finish(push.way);
    });
    if (reply === 'delayed') response.setHeader('retry-after', retryAfterSeconds);
    response.writeHead(answers[reply]).end();
  }
}

/** Of an event whose data alone is the body: CloudEvents' HTTP binding 1.0.2, section 3.1. */
function attribute(headers: Readonly<Record<string, string>>, name: string): string | undefined {
  const value = headers[`ce-${name}`];
  return value === undefined ? undefined : decodeURIComponent(value);
}
