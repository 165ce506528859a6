import type { ClaimedEvent } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { DatabaseUnavailable, faultOf } from '#db/errors.ts';
import { extend } from '#db/extend.ts';
import type { Lease } from '#db/lease.ts';
import { type Settled, settleTimed, type SettleResult, type Settlement } from '#db/settle.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { activeTraceId } from '#runtime/tracing.ts';
import { GroupCommit, type Weighed } from '#runtime/group-commit.ts';
import { type BatchPart, partHere, withBatchSpan } from '#runtime/messaging-spans.ts';

export interface SubscriptionRef {
  readonly id: number;
  readonly name: string;
  readonly topic_id: number;
}

export interface SettlerOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake'>;
  readonly metrics: Pick<Metrics, 'recordSettleCall'>;
}

export interface Settler {
  /**
   * Settles leases, together with those of other requests that come at the same time; the answers are in the order of the
   * settlements. Rejects with what `faultOf` sorts; to repeat a settle is safe whatever became of it.
   */
  settle(
    subscription: SubscriptionRef,
    settlements: readonly Settlement[],
  ): Promise<SettleResult[]>;
  /** Gives back what was claimed and could not be handed out; what fails of it runs out by itself. */
  release(subscription: SubscriptionRef, events: readonly ClaimedEvent[]): Promise<void>;
  /** The new deadlines in the order of the leases, null where one is lost. */
  extend(
    subscription: SubscriptionRef,
    leases: readonly Lease[],
    leaseMs: number,
  ): Promise<(string | null)[]>;
  /** Waits for what is under way, until the deadline. */
  drain(deadline: AbortSignal): Promise<void>;
}

interface Pending extends Weighed, BatchPart {
  readonly subscription: SubscriptionRef;
  readonly settlements: readonly Settlement[];
  /** Of the request. */
  readonly traceId: string | undefined;
  answer(results: SettleResult[]): void;
  fail(error: unknown): void;
}

const callEventsMax = 1000;

/** Group commit of settles: those of one subscription that come while a call is under way share the next. */
export function createSettler(options: SettlerOptions): Settler {
  const group = new GroupCommit<Pending>({
    eventsMax: callEventsMax,
    bytesMax: Infinity,
    send: (batch) => send(options, batch),
  });
  const settler: Settler = {
    settle: (subscription, settlements) =>
      new Promise((answer, fail) => {
        group.add(subscription.id, {
          subscription,
          settlements,
          traceId: activeTraceId(),
          events: settlements.length,
          bytes: 0,
          ...partHere(),
          answer,
          fail,
        });
      }),
    release: async (subscription, events) => {
      const settlements = events.map((event): Settlement => {
        return { lease: { ...event, topic_id: subscription.topic_id }, outcome: 'released' };
      });
      // a lease that cannot be given back now runs out, and the reaper finds it
      await settler.settle(subscription, settlements).catch(() => undefined);
    },
    extend: async (subscription, leases, leaseMs) => {
      const call = () =>
        extend(options.db, subscription.topic_id, subscription.id, { leases, leaseMs });
      try {
        return await call();
      } catch (error) {
        if (!isInTheWay(error)) throw error;
        return call();
      }
    },
    drain: async (deadline) => {
      const unsent = await group.drain(deadline);
      for (const pending of unsent)
        pending.fail(new DatabaseUnavailable('the process ends before this was sent'));
    },
  };
  return settler;
}

/** One call for all; where it fails, once more in parts, so that only those at fault are refused. */
async function send(
  options: SettlerOptions,
  batch: readonly Pending[],
  isRepeated = false,
): Promise<void> {
  const subscription = batch[0]?.subscription;
  if (subscription === undefined) return;
  const settlements = batch.flatMap(({ settlements: own, traceId }) =>
    traceId === undefined ? own : own.map((each) => ({ ...each, traceId })),
  );
  const began = performance.now();
  let settled: Settled;
  try {
    const of = { operation: 'settle', type: 'settle', destination: subscription.name } as const;
    settled = await withBatchSpan({ ...of, messages: settlements.length }, batch, () =>
      settleTimed(options.db, subscription.topic_id, subscription.id, settlements),
    );
  } catch (error) {
    const parts = isRepeated ? [] : partsToRepeat(error, batch);
    for (const part of parts) await send(options, part, true);
    if (parts.length === 0) for (const pending of batch) pending.fail(error);
    return;
  }
  const { results } = settled;
  options.metrics.recordSettleCall({
    subscription: subscription.name,
    settlements,
    durationSeconds: (performance.now() - began) / 1000,
    ...settled,
  });
  if (results.some((result, index) => isDueNow(result, settlements[index]))) {
    options.wakeups.wake(subscription.topic_id, [subscription.id]);
  }
  let from = 0;
  for (const pending of batch) pending.answer(results.slice(from, (from += pending.events)));
}

/** A row that somebody holds stops the requests about it and no others; anything else may be the fault of any request. */
function partsToRepeat(error: unknown, batch: readonly Pending[]): (readonly Pending[])[] {
  if (isInTheWay(error)) {
    const entryOf = ({ settlements }: Pending) => settlements[0]?.lease.entry_id;
    return [...Map.groupBy(batch, entryOf).values()];
  }
  return faultOf(error) === 'defect' && batch.length > 1 ? batch.map((pending) => [pending]) : [];
}

function isInTheWay(error: unknown): boolean {
  const fault = faultOf(error);
  return fault === 'lock_timeout' || fault === 'conflict';
}

function isDueNow(result: SettleResult, settlement: Settlement | undefined): boolean {
  return result === 'released' || (result === 'nacked' && settlement?.delayMs === 0);
}
