import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import {
  publishBatch,
  publishEventsMax,
  type PublishBatchResult,
  type PublishOutcome,
  type PublishRequest,
} from '#db/publish.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { type BatchPart, partHere, withBatchSpan } from '#runtime/messaging-spans.ts';
import { BlockedKeys } from './blocked-keys.ts';
import { GroupCommit, type Weighed } from '#runtime/group-commit.ts';

export interface TopicRef {
  readonly id: number;
  readonly name: string;
}

/** What became of one event of a request. */
export interface EventResult {
  readonly id: string;
  readonly outcome: PublishOutcome;
}

/**
 * - `buffer_full`, `unavailable`, `busy`, `closed`, `in_progress`: nothing of the request was stored. `in_progress`: another publish
 *   holds one of its keys.
 * - `outcome_unknown`: the connection broke in the middle of the commit.
 */
export type PublishAnswer =
  | { readonly status: 'published'; readonly results: readonly EventResult[] }
  | {
      readonly status:
        | 'topic_not_found'
        | 'buffer_full'
        | 'unavailable'
        | 'busy'
        | 'in_progress'
        | 'closed'
        | 'outcome_unknown';
    };

type Refusal = Exclude<PublishAnswer['status'], 'published'>;

export interface PublisherOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake'>;
  readonly metrics: Pick<Metrics, 'recordPublish' | 'setPublishBuffer'>;
  readonly limits: {
    /** Over all topics, from when a request comes to when it is answered. */
    readonly bufferEventsMax: number;
    readonly bufferBytesMax: number;
  };
}

export interface Publisher {
  /**
   * Stores a request, together with those that come at the same time. `bytes` is what it takes up in memory. Rejects only
   * for what is wrong with this very request or with us.
   */
  publish(topic: TopicRef, request: PublishRequest, bytes: number): Promise<PublishAnswer>;
  /** Waits until nothing is buffered. What is left at the deadline, and what comes later, is answered `closed`. */
  drain(deadline: AbortSignal): Promise<void>;
}

interface Pending extends Weighed, BatchPart {
  readonly topic: TopicRef;
  readonly request: PublishRequest;
  answer(answer: PublishAnswer): void;
  fail(error: unknown): void;
}

const batchBytesMax = 8 * 1024 * 1024;

/** Group commit: publishes of one topic that come while one is under way are stored by the next call, all in one. */
export function createPublisher(options: PublisherOptions): Publisher {
  return new GroupPublisher(options);
}

class GroupPublisher implements Publisher {
  readonly #options: PublisherOptions;
  readonly #group: GroupCommit<Pending>;
  readonly #blocked = new BlockedKeys();
  /** For publishes with a key that was blocked a moment ago: each goes by itself, beside its topic's others. */
  readonly #alone: GroupCommit<Pending>;
  #events = 0;
  #bytes = 0;
  #isClosed = false;

  constructor(options: PublisherOptions) {
    this.#options = options;
    this.#group = new GroupCommit({
      eventsMax: publishEventsMax,
      bytesMax: batchBytesMax,
      send: (batch) => this.#send(batch),
    });
    this.#alone = new GroupCommit({
      eventsMax: 1,
      bytesMax: batchBytesMax,
      send: ([pending]) => this.#probe(pending),
    });
  }

  publish(topic: TopicRef, request: PublishRequest, bytes: number): Promise<PublishAnswer> {
    const events = request.events.length;
    if (this.#isClosed) return Promise.resolve({ status: 'closed' });
    if (!this.#hasRoom(events, bytes)) return Promise.resolve({ status: 'buffer_full' });
    const blocked = this.#blocked.stateOf(topic.id, request);
    if (blocked === 'probed') return Promise.resolve({ status: 'in_progress' });
    this.#count(events, bytes);
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        topic,
        request,
        ...partHere(),
        events,
        bytes,
        answer: (answer) => {
          this.#count(-events, -bytes);
          resolve(answer);
        },
        fail: (error) => {
          this.#count(-events, -bytes);
          reject(error as Error);
        },
      };
      if (blocked === 'blocked') this.#blocked.beginProbe(topic.id, request);
      (blocked === 'blocked' ? this.#alone : this.#group).add(topic.id, pending);
    });
  }

  async drain(deadline: AbortSignal): Promise<void> {
    const lanes = [this.#group, this.#alone];
    const unsent = await Promise.all(lanes.map((lane) => lane.drain(deadline)));
    this.#isClosed = deadline.aborted;
    refuse(unsent.flat(), 'closed');
  }

  #hasRoom(events: number, bytes: number): boolean {
    const { bufferEventsMax, bufferBytesMax } = this.#options.limits;
    // a request that is larger than the bounds gets through when there is nothing else
    return (
      this.#events === 0 ||
      (this.#events + events <= bufferEventsMax && this.#bytes + bytes <= bufferBytesMax)
    );
  }

  #count(events: number, bytes: number): void {
    this.#events += events;
    this.#bytes += bytes;
    this.#options.metrics.setPublishBuffer(this.#events);
  }

  async #probe(pending: Pending | undefined): Promise<void> {
    if (pending === undefined) return;
    await this.#send([pending]);
    this.#blocked.endProbe(pending.topic.id, pending.request);
  }

  async #send(batch: readonly Pending[], isRepeated = false): Promise<void> {
    const topic = batch[0]?.topic;
    if (topic === undefined) return;
    const startedAt = performance.now();
    let result: PublishBatchResult;
    try {
      const requests = batch.map((pending) => pending.request);
      const messages = requests.reduce((sum, { events }) => sum + events.length, 0);
      const operation = { operation: 'publish_batch', destination: topic.name, messages };
      result = await withBatchSpan(operation, batch, () =>
        publishBatch(this.#options.db, topic.id, requests),
      );
    } catch (error) {
      return this.#recover(batch, error, isRepeated);
    }
    // it is committed: nothing from here on may lead to a repetition
    if (result.status === 'topic_not_found') return refuse(batch, 'topic_not_found');
    this.#record(topic, result.results, (performance.now() - startedAt) / 1000);
    this.#options.wakeups.wake(topic.id, result.woken);
    for (const [index, pending] of batch.entries()) {
      pending.answer({ status: 'published', results: result.results[index] ?? [] });
    }
  }

  /** One request's fault is found by repeating the others without it; whoever is alone gets the blame. */
  async #recover(batch: readonly Pending[], error: unknown, isRepeated: boolean): Promise<void> {
    const fault = faultOf(error);
    switch (fault) {
      case 'unavailable':
        return refuse(batch, 'unavailable');
      case 'outcome_unknown':
        return refuse(batch, 'outcome_unknown');
      case 'statement_timeout':
        return refuse(batch, 'busy');
      case 'lock_timeout':
        return this.#repeatKeyed(batch);
      case 'conflict':
        if (!isRepeated) return this.#send(batch, true);
        return batch.length === 1 ? refuse(batch, 'busy') : this.#repeatHalves(batch);
      default:
        return batch.length === 1 ? batch[0]?.fail(error) : this.#repeatHalves(batch);
    }
  }

  async #repeatHalves(batch: readonly Pending[]): Promise<void> {
    const half = Math.ceil(batch.length / 2);
    await this.#send(batch.slice(0, half), true);
    await this.#send(batch.slice(half), true);
  }

  /** Somebody else holds a key. Those without keys go first and together, the others one by one: only one is blocked. */
  async #repeatKeyed(batch: readonly Pending[]): Promise<void> {
    const keyed = batch.filter((pending) => isKeyed(pending.request));
    const [only] = batch;
    if (keyed.length === 0) return refuse(batch, 'busy');
    if (only !== undefined && batch.length === 1) {
      this.#blocked.add(only.topic.id, only.request);
      return refuse(batch, 'in_progress');
    }
    const keyless = batch.filter((pending) => !isKeyed(pending.request));
    if (keyless.length > 0) await this.#send(keyless);
    for (const pending of keyed) {
      const isBlocked = this.#blocked.stateOf(pending.topic.id, pending.request) !== undefined;
      if (isBlocked) refuse([pending], 'in_progress');
      else await this.#send([pending]);
    }
  }

  #record(
    topic: TopicRef,
    results: readonly (readonly EventResult[])[],
    durationSeconds: number,
  ): void {
    let [published, duplicates, conflicts] = [0, 0, 0];
    for (const events of results) {
      for (const { outcome } of events) {
        if (outcome === 'published') published += 1;
        else if (outcome === 'duplicate') duplicates += 1;
        else if (outcome !== 'too_far') conflicts += 1;
      }
    }
    this.#options.metrics.recordPublish({
      topic: topic.name,
      published,
      duplicates,
      conflicts,
      durationSeconds,
    });
  }
}

function refuse(batch: readonly Pending[], status: Refusal): void {
  for (const pending of batch) pending.answer({ status });
}

function isKeyed(request: PublishRequest): boolean {
  return request.key !== undefined || request.events.some((event) => event.key !== undefined);
}
