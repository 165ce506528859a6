import { clockBefore } from '#db/clock.ts';
import type { Database } from '#db/client.ts';
import { dueSubscriptions } from '#db/reap.ts';
import type { Wake } from '#db/wake-sender.ts';
import type { Wakeups } from '#db/wakeups.ts';
import { type Loop, startLoop } from '#runtime/loop.ts';
import type { Outage } from '#runtime/outage.ts';

export interface DueWatchOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'onEveryWake' | 'onReconnect' | 'listening'>;
  readonly outage: Outage;
  readonly onDue: (subscriptionId: number, mark?: string) => void;
  /** Nothing becomes waiting further back than this from its commit: two statement timeouts. */
  readonly lookBackMs: number;
  /** How often is looked without a wake-up: while wake-ups are heard (5000), and while they are not (250). */
  readonly pollMs?: { readonly listening: number; readonly deaf: number };
}

/**
 * Says which subscriptions may have something to claim: by wake-ups, and by a slow look of its own, so that delivery goes on
 * also while nobody leads and the leader's sweep is missing.
 */
export class DueWatch {
  readonly #options: DueWatchOptions;
  readonly #loop: Loop;
  readonly #unsubscribe: (() => void)[];
  #since = '-infinity';
  #isFromHead = true;
  #lookedAt = -Infinity;

  constructor(options: DueWatchOptions) {
    this.#options = options;
    const { wakeups } = options;
    this.#unsubscribe = [
      wakeups.onEveryWake((wake) => this.#onWake(wake)),
      // what happened before was not heard
      wakeups.onReconnect(() => this.#lookSoon()),
    ];
    this.#loop = startLoop({
      name: 'due watch',
      intervalMs: options.pollMs?.deaf ?? 250,
      onTick: async () => this.#tick(),
      onError: (error) => options.outage.failed('look', error),
    });
  }

  async stop(): Promise<void> {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    await this.#loop.stop();
  }

  #onWake({ subscriptionIds, mark }: Wake): void {
    if (subscriptionIds === undefined) this.#lookSoon();
    else for (const id of subscriptionIds) this.#options.onDue(id, mark);
  }

  #lookSoon(): void {
    this.#isFromHead = true;
    this.#loop.wake();
  }

  async #tick(): Promise<void> {
    const { wakeups, pollMs, outage } = this.#options;
    const began = performance.now();
    const waitMs = wakeups.listening ? (pollMs?.listening ?? 5000) : 0;
    if (!this.#isFromHead && began - this.#lookedAt < waitMs) return;
    await this.#look();
    this.#lookedAt = began;
    outage.worked('look', began);
  }

  /** From the head at the beginning, and when wake-ups were missed; else what became due since the last look. */
  async #look(): Promise<void> {
    const { db, onDue, lookBackMs } = this.#options;
    const isFromHead = this.#isFromHead;
    this.#isFromHead = false;
    try {
      const next = await clockBefore(db, lookBackMs);
      for (const due of await dueSubscriptions(db, isFromHead ? '-infinity' : this.#since)) {
        onDue(due.subscription_id, isFromHead ? due.due_at : undefined);
      }
      this.#since = next;
    } catch (error) {
      this.#isFromHead ||= isFromHead;
      throw error;
    }
  }
}
