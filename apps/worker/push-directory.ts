import type { Database } from '#db/client.ts';
import { findPushSubscription, type PushSubscriptionRow } from '#db/push-subscriptions.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Logger } from '#runtime/logger.ts';
import { LookupCache } from '#runtime/lookup-cache.ts';
import type { Sealer } from '#runtime/sealer.ts';
import type { PushTarget } from './push-request.ts';

/** A push subscription as deliveries need it. */
export interface PushSubscription extends PushTarget {
  readonly id: number;
  readonly name: string;
  readonly topicId: number;
  /** It may be sent to: it is active, and its secret can be opened. */
  readonly isActive: boolean;
  readonly retryClientErrors: boolean;
}

export interface PushDirectoryOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'onChange' | 'onReconnect'>;
  readonly sealer: Sealer;
  readonly logger: Pick<Logger, 'error'>;
  /** A subscription that is known here was changed, or may have been. */
  readonly onChange: (subscriptionId: number) => void;
  /** Subscriptions that are known at a time (10,000). */
  readonly entriesMax?: number;
}

const keptMs = 30_000;

/** Push subscriptions by id: changes come in by NOTIFY within a second, an answer is kept for 30 s at most. */
export class PushDirectory implements Disposable {
  readonly #cache: LookupCache<PushSubscription>;
  readonly #options: Pick<PushDirectoryOptions, 'sealer' | 'logger'>;
  readonly #onChange: (subscriptionId: number) => void;
  readonly #entriesMax: number;
  /** A change names the subscription; deliveries know its id. In the order of their last look-up. */
  readonly #ids = new Map<string, number>();
  /** Changes heard of so far, of whatever subscription. */
  #changes = 0;
  readonly #unsubscribe: (() => void)[];

  constructor(options: PushDirectoryOptions) {
    const { db, wakeups, onChange, entriesMax = 10_000 } = options;
    this.#options = options;
    this.#onChange = onChange;
    this.#entriesMax = entriesMax;
    this.#cache = new LookupCache<PushSubscription>(
      async (id) => this.#lookUp(db, Number(id)),
      // an id never becomes that of a push subscription later
      { keptMs, missingKeptMs: keptMs, entriesMax },
    );
    this.#unsubscribe = [
      wakeups.onChange((kind, name) => {
        if (kind === 'subscription') this.#changed(name);
      }),
      wakeups.onReconnect(() => {
        this.#changes += 1;
        this.#cache.clear();
        for (const id of this.#ids.values()) this.#onChange(id);
      }),
    ];
  }

  /** Undefined for one that pulls, and for none. Rejects with what `faultOf` sorts. */
  get(id: number): Promise<PushSubscription | undefined> {
    return this.#cache.get(String(id));
  }

  [Symbol.dispose](): void {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    this.#cache.clear();
  }

  async #lookUp(db: Database, id: number): Promise<PushSubscription | undefined> {
    const changes = this.#changes;
    let row = await findPushSubscription(db, id);
    if (row === undefined) return undefined;
    this.#know(row);
    // what was heard meanwhile may have meant this one, whose name was not known; from here on it is
    if (this.#changes !== changes) row = await findPushSubscription(db, id);
    return row === undefined ? undefined : this.#read(row);
  }

  #know({ name, id }: PushSubscriptionRow): void {
    this.#ids.delete(name);
    this.#ids.set(name, id);
    if (this.#ids.size <= this.#entriesMax) return;
    const [oldest] = this.#ids;
    if (oldest === undefined) return;
    this.#ids.delete(oldest[0]);
    // nothing is remembered whose changes would not be heard
    this.#cache.forget(String(oldest[1]));
  }

  #read(row: PushSubscriptionRow): PushSubscription {
    const secret = this.#open(row);
    return {
      id: row.id,
      name: row.name,
      topicId: row.topic_id,
      topic: row.topic,
      isActive: row.state === 'active' && secret !== undefined,
      endpoint: row.endpoint,
      mode: row.mode,
      headers: row.headers,
      timeoutMs: row.timeout_ms,
      retryClientErrors: row.retry_client_errors,
      secret: secret ?? Buffer.alloc(0),
    };
  }

  /** Undefined where it was sealed with another key: the events wait until this process gets that one. */
  #open({ id, name, sealed, key_id: keyId }: PushSubscriptionRow): Buffer | undefined {
    const { sealer, logger } = this.#options;
    try {
      return sealer.open(sealed, keyId, `push_secret ${id}`);
    } catch (error) {
      logger.error({ subscription: name, err: error }, 'its signing secret cannot be opened');
      return undefined;
    }
  }

  #changed(name: string): void {
    this.#changes += 1;
    const id = this.#ids.get(name);
    if (id === undefined) return;
    this.#cache.forget(String(id));
    this.#onChange(id);
  }
}
