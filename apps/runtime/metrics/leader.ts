import { Counter, Histogram } from 'prom-client';
import { otherName } from '../name-limit.ts';
import { requestSeconds } from './buckets.ts';
import { createObservationGauges } from './observation.ts';
import { gaugesOf, type MetricSource } from './source.ts';
import { type BacklogSample, topSamples } from './top-samples.ts';
import { vanish } from './vanish.ts';

export type { BacklogSample };

/** Of what the leader's duties take back. */
export function createLeaseMetrics({ registry, topics, subscriptions }: MetricSource) {
  const counter = <Label extends string>(name: string, help: string, labelNames: Label[]) =>
    new Counter({ name, help, labelNames, registers: [registry] });
  const leasesExpired = counter(
    'broker_leases_expired_total',
    'Events whose lease ran out and was taken back',
    ['topic'],
  );
  const leasesTakenOver = counter(
    'broker_leases_taken_over_total',
    'Events whose lease was taken from a worker that is gone',
    ['topic'],
  );
  const workersGone = counter(
    'broker_workers_gone_total',
    'Workers that this process, while it led, found gone without a goodbye',
    [],
  );
  const eventsExpired = counter(
    'broker_events_expired_total',
    'Events whose retention ended before they were acked',
    ['topic', 'subscription'],
  );
  return {
    recordLeasesExpired(reap: { topic: string; leases: number }): void {
      if (reap.leases > 0) leasesExpired.inc({ topic: topics.labelOf(reap.topic) }, reap.leases);
    },
    recordLeasesTakenOver({ topic, leases }: { topic: string; leases: number }): void {
      if (leases > 0) leasesTakenOver.inc({ topic: topics.labelOf(topic) }, leases);
    },
    recordWorkersGone(workers: number): void {
      workersGone.inc(workers);
    },
    recordEventsExpired(expiry: { topic: string; subscription: string; events: number }): void {
      if (expiry.events === 0) return;
      const topic = topics.labelOf(expiry.topic);
      const subscription = subscriptions.labelOf(expiry.subscription);
      eventsExpired.inc({ topic, subscription }, expiry.events);
    },
  };
}

function createBacklogGauges(source: MetricSource, namesMax: number) {
  const gauge = gaugesOf(source);
  const labels = ['topic', 'subscription'] as const;
  const gauges = {
    waiting: gauge(
      'broker_waiting_events',
      'Events that wait, by the last sample of the leader',
      labels,
    ),
    leased: gauge('broker_leased_events', 'Events that are leased, by the last sample', labels),
    oldest: gauge(
      'broker_oldest_waiting_seconds',
      'Age of the oldest event that waits and is due',
      labels,
    ),
    dead: gauge('broker_dead_letters', 'Dead letters that are kept, by the last sample', labels),
    limit: gauge(
      'broker_topic_backlog_limit_events',
      'Waiting events of one subscription from which on publishes to the topic are refused',
      ['topic'],
    ),
  };
  // What is not in the new sample is gone, and must not stay at its last value.
  return (samples: readonly BacklogSample[]): void => {
    for (const each of Object.values(gauges)) each.reset();
    for (const sample of topSamples(samples, namesMax)) {
      const { topic, subscription } = sample;
      gauges.waiting.set({ topic, subscription }, sample.waiting);
      gauges.leased.set({ topic, subscription }, sample.leased);
      gauges.oldest.set({ topic, subscription }, sample.oldestWaitingSeconds);
      gauges.dead.set({ topic, subscription }, sample.deadLetters);
      if (topic !== otherName) gauges.limit.set({ topic }, sample.backlogLimit);
    }
  };
}

/** Who leads, what its duties do, and what it alone looks at. */
export function createLeaderMetrics(source: MetricSource, namesMax: number) {
  const setBacklog = createBacklogGauges(source, namesMax);
  const observation = createObservationGauges(source);
  const gauge = gaugesOf(source);
  const leader = gauge('broker_leader', '1 in the process that leads, else 0');
  const term = gauge('broker_leader_term', 'Term in which this process leads or last led');
  const lastSuccess = gauge(
    'broker_duty_last_success_timestamp_seconds',
    'When a duty of the leader last ended without a failure',
    ['duty'],
  );
  const duty = new Histogram({
    name: 'broker_duty_duration_seconds',
    help: 'Duration of one run of a duty of the leader',
    labelNames: ['duty', 'result'],
    buckets: requestSeconds,
    registers: [source.registry],
  });
  let isLeader = false;
  return {
    /** The leader has sampled the backlog: all subscriptions that there are. */
    setBacklog,
    /** The leader has looked at the database; undefined: what it saw holds no more. */
    setDatabaseObservation: observation.set,
    /** This process leads in `term`, or leads no longer: what it alone looked at then vanishes. */
    setLeader(state: { isLeader: boolean; term: number }): void {
      isLeader = state.isLeader;
      leader.set(isLeader ? 1 : 0);
      term.set(state.term);
      if (isLeader) return;
      setBacklog([]);
      observation.set(undefined);
      vanish(lastSuccess);
    },
    /** One run of a duty has ended; `fenced`: another process leads by now. */
    recordDuty(run: {
      duty: string;
      result: 'done' | 'failed' | 'fenced';
      durationSeconds: number;
    }): void {
      duty.observe({ duty: run.duty, result: run.result }, run.durationSeconds);
      if (isLeader && run.result === 'done') lastSuccess.setToCurrentTime({ duty: run.duty });
    },
  };
}
