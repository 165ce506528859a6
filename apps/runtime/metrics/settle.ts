import { Counter, Histogram, type Registry } from 'prom-client';
import { batchEvents, callSeconds, latencySeconds } from './buckets.ts';
import { EventHistogram } from './event-histogram.ts';
import type { MetricSource } from './source.ts';

export type SettleOutcome = 'acked' | 'nacked' | 'released' | 'deferred' | 'dead' | 'lost';

/** Why an event became a dead letter. */
export type DeadReason = 'max_attempts' | 'rejected' | 'expired';

/** One call that settled events of one subscription, as the database tells it. */
export interface SettleCall {
  readonly subscription: string;
  readonly durationSeconds: number;
  readonly settlements: readonly {
    readonly outcome: string;
    /** Of a trace that shows it. */
    readonly traceId?: string | undefined;
  }[];
  /** In the order of the settlements. */
  readonly results: readonly (Exclude<SettleOutcome, 'lost'> | 'lease_lost')[];
  /** Events of one publish, so many seconds after it; `position`: of one of them, among the settlements. */
  readonly acked: readonly {
    readonly events: number;
    readonly seconds: number;
    readonly position: number;
  }[];
}

/** What became of what was handed out. */
export function createSettleMetrics(source: MetricSource) {
  const { registry, subscriptions } = source;
  const { settled, dead, batch, duration } = declare(registry);
  const endToEnd = new EventHistogram({
    name: 'broker_end_to_end_seconds',
    help: 'From the publish of an event to its ack, a delay that was asked for included',
    labelName: 'subscription',
    buckets: latencySeconds,
    registry,
  });

  /** So many events became dead letters. */
  function recordDeadLettered(of: {
    subscription: string;
    reason: DeadReason;
    events: number;
  }): void {
    if (of.events === 0) return;
    const subscription = subscriptions.labelOf(of.subscription);
    dead.inc({ subscription, reason: of.reason }, of.events);
  }

  return {
    /** One settle call to the database was committed. */
    recordSettleCall(call: SettleCall): void {
      const { settlements, results } = call;
      const subscription = subscriptions.labelOf(call.subscription);
      batch.observe(results.length);
      duration.observe(call.durationSeconds);
      const { counts, rejected } = count(call);
      for (const [outcome, events] of counts) settled.inc({ subscription, outcome }, events);
      const exhausted = (counts.get('dead') ?? 0) - rejected;
      recordDeadLettered({ subscription, reason: 'rejected', events: rejected });
      recordDeadLettered({ subscription, reason: 'max_attempts', events: exhausted });
      for (const { events, seconds, position } of call.acked) {
        const { traceId } = settlements[position] ?? {};
        // A clock that stepped back must not show as a negative time.
        endToEnd.observe(subscription, Math.max(0, seconds), { events, traceId });
      }
    },
    recordDeadLettered,
  };
}

function declare(registry: Registry) {
  const registers = [registry];
  return {
    settled: new Counter({
      name: 'broker_events_settled_total',
      help: 'Events whose lease was settled, by outcome; lost: the lease was no longer held',
      labelNames: ['subscription', 'outcome'],
      registers,
    }),
    dead: new Counter({
      name: 'broker_events_dead_lettered_total',
      help: 'Events that became dead letters, whoever made them: a settle, or a duty of the leader',
      labelNames: ['subscription', 'reason'],
      registers,
    }),
    batch: new Histogram({
      name: 'broker_settle_batch_events',
      help: 'Events that one settle call was about',
      buckets: batchEvents,
      registers,
    }),
    duration: new Histogram({
      name: 'broker_settle_duration_seconds',
      help: 'Duration of one settle call that was committed',
      buckets: callSeconds,
      registers,
    }),
  };
}

function count({ settlements, results }: SettleCall) {
  const counts = new Map<SettleOutcome, number>();
  let rejected = 0;
  for (const [index, result] of results.entries()) {
    const outcome = result === 'lease_lost' ? 'lost' : result;
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
    if (outcome === 'dead' && settlements[index]?.outcome === 'rejected') rejected += 1;
  }
  return { counts, rejected };
}
