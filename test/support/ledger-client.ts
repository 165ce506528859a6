import {
  codeOf,
  NoAnswer,
  type Answer,
  type HttpClient,
  type RequestOptions,
} from './http-client.ts';
import type { Delivery, Ledger, Operation, PublishOperation, SettleOperation } from './ledger.ts';

export interface ReceiveOptions {
  readonly max: number;
  readonly waitSeconds: number;
  readonly leaseSeconds: number;
  readonly signal?: AbortSignal;
}

/** Longer than any answer may take, also where a connection to the database has to be given up first. */
const patienceMs = 30_000;

interface ReceivedMessage {
  readonly lease_id: string;
  readonly delivery_attempt: number;
  readonly event_id: string;
  readonly event: { readonly data?: { readonly tag?: string } };
}

/** Publishes, receives and settles over HTTP, and writes down in a ledger what came of it. Never rejects. */
export class LedgerClient {
  readonly ledger: Ledger;
  readonly #http: HttpClient;
  readonly #isRepeated: boolean;
  /** How often each code of a refusal was heard; connections that broke count as `no_answer`. */
  readonly codes = new Map<string, number>();

  /** `isRepeated`: what stands between repeats a settle, or a publish with a key, that no answer came to. */
  constructor(ledger: Ledger, http: HttpClient, { isRepeated = false } = {}) {
    this.ledger = ledger;
    this.#http = http;
    this.#isRepeated = isRepeated;
  }

  /** One tag as a single event, several as an array. */
  async publish(
    topicUrl: string,
    tags: readonly string[],
    options: { readonly key?: string | undefined; readonly timeoutMs?: number } = {},
  ): Promise<PublishOperation> {
    const { key, timeoutMs } = options;
    const events = tags.map((tag) => ({ type: 'ledger.entry', source: '/ledger', data: { tag } }));
    const operation = this.ledger.beginPublish(tags, key);
    const answer = await this.#send(operation, `${topicUrl}/events`, {
      body: events.length === 1 ? events[0] : events,
      ...(key !== undefined && { headers: { 'idempotency-key': `"${key}"` } }),
      ...(timeoutMs !== undefined && { timeoutMs }),
    });
    if (answer !== undefined) this.ledger.endPublish(operation, resultsOf(answer));
    return operation;
  }

  /** Undefined when no success was answered. */
  async receive(
    baseUrl: string,
    subscription: string,
    options: ReceiveOptions,
  ): Promise<Delivery[] | undefined> {
    const { max, waitSeconds, leaseSeconds, signal } = options;
    const operation = this.ledger.beginReceive(subscription, leaseSeconds * 1000);
    const answer = await this.#send(
      operation,
      `${subscriptionUrl(baseUrl, subscription)}/receive`,
      {
        timeoutMs: waitSeconds * 1000 + patienceMs,
        body: {
          max_messages: max,
          wait_seconds: waitSeconds,
          visibility_timeout_seconds: leaseSeconds,
        },
        ...(signal && { signal }),
      },
    );
    if (answer === undefined) return undefined;
    const { messages } = answer.json as { messages: readonly ReceivedMessage[] };
    const heard = messages.map(
      ({ lease_id: leaseId, delivery_attempt: attempt, event_id: eventId, event }) => {
        return { leaseId, attempt, eventId, tag: event.data?.tag ?? `? ${JSON.stringify(event)}` };
      },
    );
    return this.ledger.endReceive(operation, heard);
  }

  /** Of one subscription. */
  async ack(baseUrl: string, deliveries: readonly Delivery[]): Promise<void> {
    const leaseIds = deliveries.map(({ leaseId }) => leaseId);
    await this.#settle(baseUrl, deliveries, { verb: 'ack', body: { lease_ids: leaseIds } });
  }

  /** Of one subscription; due again after a delay. */
  async nack(
    baseUrl: string,
    deliveries: readonly Delivery[],
    delaySeconds: number,
  ): Promise<void> {
    const leases = deliveries.map(({ leaseId }) => ({
      lease_id: leaseId,
      delay_seconds: delaySeconds,
    }));
    await this.#settle(baseUrl, deliveries, { verb: 'nack', body: { leases } });
  }

  async #settle(
    baseUrl: string,
    deliveries: readonly Delivery[],
    request: { readonly verb: SettleOperation['verb']; readonly body: unknown },
  ): Promise<void> {
    const [first] = deliveries;
    if (first === undefined) return;
    const leaseIds = deliveries.map(({ leaseId }) => leaseId);
    const { subscription } = first;
    const operation = this.ledger.beginSettle(request.verb, subscription, leaseIds);
    const url = `${subscriptionUrl(baseUrl, subscription)}/${request.verb}`;
    const answer = await this.#send(operation, url, { body: request.body });
    if (answer === undefined) return;
    const { succeeded } = answer.json as { succeeded: readonly string[] };
    this.ledger.endSettle(operation, succeeded);
  }

  /** The answer that says what became of each part of the request; anything else ends the operation here. */
  async #send(
    operation: Operation,
    url: string,
    options: RequestOptions,
  ): Promise<Answer | undefined> {
    try {
      const answer = await this.#http.send(url, {
        method: 'POST',
        timeoutMs: patienceMs,
        ...options,
      });
      const code = codeOf(answer);
      if (answer.status < 300 || isAllLost(answer)) return answer;
      this.#count(code);
      this.#noteDefect(url, answer);
      this.ledger.endOtherwise(
        operation,
        this.#isSure(operation, answer) ? 'fail' : 'unknown',
        code,
      );
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      this.#count('no_answer');
      this.ledger.endOtherwise(operation, error.wasSent ? 'unknown' : 'fail', error.message);
    }
    return undefined;
  }

  /** A refusal of a copy says nothing about the copy before it, which may have done its work without an answer. */
  #isSure(operation: Operation, answer: Answer): boolean {
    const code = codeOf(answer);
    if (answer.status === 500 || code === 'outcome_unknown' || code === 'handler_timeout')
      return false;
    const isRepeatable = 'verb' in operation || ('key' in operation && operation.key !== undefined);
    return !(this.#isRepeated && isRepeatable && answer.status > 500);
  }

  #count(code: string): void {
    this.codes.set(code, (this.codes.get(code) ?? 0) + 1);
  }

  #noteDefect(url: string, answer: Answer): void {
    const { status, headers, text } = answer;
    const isProblem = headers['content-type']?.startsWith('application/problem+json') === true;
    const mayComeAgain = status !== 503 || Number(headers['retry-after']) >= 1;
    if (status === 500 || !isProblem || !mayComeAgain) {
      const retryAfter = headers['retry-after'];
      this.ledger.defects.push(`${url}: ${status} retry-after ${retryAfter} ${text.slice(0, 500)}`);
    }
  }
}

export function topicUrl(baseUrl: string, topic: string): string {
  return `${baseUrl}/api/v1/topics/${topic}`;
}

export function subscriptionUrl(baseUrl: string, subscription: string): string {
  return `${baseUrl}/api/v1/subscriptions/${subscription}`;
}

/** 409 to a settle: every lease was lost, and each is named. */
function isAllLost({ status, json }: Answer): boolean {
  return status === 409 && Array.isArray((json as { succeeded?: unknown }).succeeded);
}

interface PublishedEvent {
  readonly id: string;
  readonly duplicate: boolean;
}

function resultsOf({ json }: Answer): readonly PublishedEvent[] {
  const body = json as PublishedEvent | { readonly results: readonly PublishedEvent[] };
  return 'results' in body ? body.results : [body];
}
