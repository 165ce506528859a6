import { findApiKey, type KnownApiKey } from '#db/api-keys.ts';
import type { Database } from '#db/client.ts';
import { findSubscription, type SubscriptionRow } from '#db/subscriptions.ts';
import { findTopic, type TopicRow } from '#db/topics.ts';
import type { ChangeKind } from '#db/wakeups.ts';
import { LookupCache } from '#runtime/lookup-cache.ts';

export type DirectoryTopic = Pick<TopicRow, 'id' | 'name' | 'max_backlog'> &
  Pick<TopicRow, 'deduplication_seconds' | 'deduplicate_event_ids' | 'retention_seconds'>;

export type DirectorySubscription = Pick<
  SubscriptionRow,
  'id' | 'name' | 'topic_id' | 'topic' | 'type' | 'state' | 'visibility_timeout_seconds'
>;

export type DirectoryApiKey = KnownApiKey;

/** The part of the wake-ups that tells of changes. */
export interface ChangeSource {
  onChange(listener: (kind: ChangeKind, name: string) => void): () => void;
  onReconnect(listener: () => void): () => void;
}

export interface DirectoryOptions {
  /** How long an answer is kept at most, in milliseconds (30,000), should its invalidation be lost. */
  readonly keptMs?: number;
  /** How long "there is none" is kept at most, in milliseconds (1,000). */
  readonly missingKeptMs?: number;
  /** Answers of each kind at most (10,000). */
  readonly entriesMax?: number;
}

/**
 * What the hot path must know of topics, subscriptions and API keys, without asking the database each time. Changes come
 * in by NOTIFY within a second; an answer is kept for 30 s at most, and all are dropped when notifications may have been
 * missed.
 */
export class Directory implements Disposable {
  readonly #topics: LookupCache<DirectoryTopic>;
  readonly #subscriptions: LookupCache<DirectorySubscription>;
  readonly #apiKeys: LookupCache<DirectoryApiKey>;
  readonly #unsubscribe: (() => void)[];

  constructor(db: Database, changes: ChangeSource, options: DirectoryOptions = {}) {
    const { keptMs = 30_000, missingKeptMs = 1000, entriesMax = 10_000 } = options;
    const limits = { keptMs, missingKeptMs, entriesMax };
    this.#topics = new LookupCache<DirectoryTopic>((name) => findTopic(db, name), limits);
    this.#subscriptions = new LookupCache<DirectorySubscription>(
      (name) => findSubscription(db, name),
      limits,
    );
    this.#apiKeys = new LookupCache((hash) => findApiKey(db, Buffer.from(hash, 'hex')), {
      ...limits,
      // whether a key has expired is the database's to say; here only time that passes is counted
      keptMsOf: (key) => key.expires_in_ms ?? keptMs,
    });
    this.#unsubscribe = [
      changes.onChange((kind, name) => this.forget(kind, name)),
      changes.onReconnect(() => this.clear()),
    ];
  }

  /** The topic of a name. */
  topic(name: string): Promise<DirectoryTopic | undefined> {
    return this.#topics.get(name);
  }

  /** The subscription of a name. */
  subscription(name: string): Promise<DirectorySubscription | undefined> {
    return this.#subscriptions.get(name);
  }

  /** The API key of a SHA-256 hash. */
  apiKey(hash: Buffer): Promise<DirectoryApiKey | undefined> {
    return this.#apiKeys.get(hash.toString('hex'));
  }

  /** Whether a key of this hash was known lately, asking nobody. */
  wasApiKey(hash: Buffer): boolean {
    return this.#apiKeys.wasFound(hash.toString('hex'));
  }

  /** Drops what a change has made wrong. Who changes something calls it too, and sees the change at once. */
  forget(kind: ChangeKind, name: string): void {
    switch (kind) {
      case 'topic':
        this.#topics.forget(name);
        break;
      case 'subscription':
        this.#subscriptions.forget(name);
        break;
      case 'api_key':
        // they are kept by hash, and change seldom
        this.#apiKeys.clear();
        break;
      case 'log_level':
        // nothing of it is kept here
        break;
    }
  }

  /** Drops everything. */
  clear(): void {
    this.#topics.clear();
    this.#subscriptions.clear();
    this.#apiKeys.clear();
  }

  [Symbol.dispose](): void {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    this.clear();
  }
}
