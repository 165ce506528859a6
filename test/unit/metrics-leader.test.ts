import { describe, expect, test } from 'vitest';
import { createMetrics, type Metrics } from '#runtime/metrics.ts';
import { type BacklogSample, topSamples } from '#runtime/metrics/top-samples.ts';

const sampleOf = (index: number, values: Partial<BacklogSample> = {}): BacklogSample => ({
  topic: `topic-${index}`,
  subscription: `subscription-${index}`,
  waiting: 0,
  leased: 0,
  oldestWaitingSeconds: 0,
  deadLetters: 0,
  backlogLimit: 1000,
  ...values,
});

const observation = {
  oldest_transaction_seconds: 12,
  xmin_age_seconds: 11,
  wal_bytes: 5000,
  lock_waits: 0,
  connections: 9,
  connections_max: 200,
  size_bytes: 1_000_000,
  partitions_ahead_seconds: 3600,
  dead_tuples: [{ table: 'queue', tuples: 7 }],
  replicas: [
    { replica: 'standby', lag_bytes: 10, lag_seconds: 0.5 },
    { replica: 'a-slot', lag_bytes: 99, lag_seconds: null },
  ],
  jobs: [{ kind: 'redrive', state: 'running', jobs: 1 }],
  processes: [{ service: 'api', processes: 3 }],
};

async function valuesOf(metrics: Metrics, pattern: RegExp): Promise<string[]> {
  const text = await metrics.registry.metrics();
  const lines = text.replaceAll(',service="reaper"', '').replaceAll('{service="reaper"}', '');
  return lines.split('\n').filter((line) => pattern.test(line));
}

describe('the first of many subscriptions', () => {
  test('all are shown where they are few, also those that have nothing', () => {
    const samples = [sampleOf(1), sampleOf(2, { waiting: 3 })];
    expect(topSamples(samples, 2)).toEqual(samples);
  });

  test('those with the most waiting, the oldest and the most dead letters are among them, and the rest is one sum', () => {
    const samples = Array.from({ length: 100 }, (_, index) => sampleOf(index, { waiting: 1 }));
    samples.push(sampleOf(100, { waiting: 50 }));
    samples.push(sampleOf(101, { waiting: 1, oldestWaitingSeconds: 9 }));
    samples.push(sampleOf(102, { deadLetters: 5 }), sampleOf(103, { leased: 4 }));
    samples.push(sampleOf(104, { deadLetters: 1, oldestWaitingSeconds: 2 }));
    const shown = topSamples(samples, 4);
    expect(shown.map((each) => each.subscription)).toEqual([
      'subscription-100',
      'subscription-101',
      'subscription-102',
      'subscription-103',
      'other',
    ]);
    expect(shown.at(-1)).toMatchObject({
      topic: 'other',
      waiting: 100,
      leased: 0,
      deadLetters: 1,
      oldestWaitingSeconds: 2,
    });
  });

  test('those without anything are among the others', () => {
    const samples = Array.from({ length: 10 }, (_, index) => sampleOf(index));
    samples.push(sampleOf(10, { waiting: 1 }));
    const shown = topSamples(samples, 5).map((each) => each.subscription);
    expect(shown).toEqual(['subscription-10', 'other']);
  });
});

describe('what the leader alone sees', () => {
  test('is absent before it leads, and vanishes when it leads no longer', async () => {
    const metrics = createMetrics({ service: 'reaper' });
    const leaderOnly =
      /^broker_(waiting_events|database_(oldest|xmin|dead|wal|lock|repl|connections|size)|partitions|jobs|processes|topic_backlog|duty_last)/;
    expect(await valuesOf(metrics, leaderOnly)).toEqual([]);
    metrics.setLeader({ isLeader: true, term: 1 });
    metrics.setBacklog([sampleOf(1, { waiting: 2 })]);
    metrics.setDatabaseObservation(observation);
    metrics.recordDuty({ duty: 'reap', result: 'done', durationSeconds: 0.1 });
    const shown = await valuesOf(metrics, leaderOnly);
    expect(shown).toContain('broker_database_wal_bytes_total 5000');
    expect(shown).toContain('broker_topic_backlog_limit_events{topic="topic-1"} 1000');
    expect(shown).toContain('broker_database_lock_waits 0');
    expect(shown).toContain('broker_database_replication_lag_bytes{replica="a-slot"} 99');
    expect(shown).toContain('broker_database_replication_lag_seconds{replica="standby"} 0.5');
    expect(shown).toContain('broker_jobs{kind="redrive",state="running"} 1');
    expect(shown.filter((line) => line.includes('a-slot'))).toHaveLength(1);
    expect(shown.find((line) => line.startsWith('broker_duty_last_success'))).toMatch(
      /\{duty="reap"\} \d{10}\.?\d*$/,
    );
    metrics.setLeader({ isLeader: false, term: 1 });
    // a duty that was under way ends a moment later
    metrics.recordDuty({ duty: 'reap', result: 'done', durationSeconds: 0.1 });
    expect(await valuesOf(metrics, leaderOnly)).toEqual([]);
  });

  test('what it could not see is absent, and what it saw before does not stay', async () => {
    const metrics = createMetrics({ service: 'reaper' });
    metrics.setLeader({ isLeader: true, term: 1 });
    metrics.setDatabaseObservation(observation);
    metrics.setDatabaseObservation({ ...observation, xmin_age_seconds: null, replicas: [] });
    expect(await valuesOf(metrics, /^broker_database_(xmin|replication)/)).toEqual([]);
    expect(await valuesOf(metrics, /^broker_database_wal/)).toEqual([
      'broker_database_wal_bytes_total 5000',
    ]);
  });

  test('a duty that failed has no new success', async () => {
    const metrics = createMetrics({ service: 'reaper' });
    metrics.setLeader({ isLeader: true, term: 1 });
    metrics.recordDuty({ duty: 'reap', result: 'failed', durationSeconds: 0.1 });
    expect(await valuesOf(metrics, /^broker_duty_last/)).toEqual([]);
  });
});

test('10,000 subscriptions: the number of series does not grow with them', async () => {
  const metrics = createMetrics({ service: 'reaper' });
  const seriesWith = async (subscriptions: number): Promise<number> => {
    const samples = Array.from({ length: subscriptions }, (_, index) =>
      sampleOf(index, { waiting: index % 7, deadLetters: index % 3, oldestWaitingSeconds: 1 }),
    );
    metrics.setLeader({ isLeader: true, term: 1 });
    metrics.setBacklog(samples);
    const settlements = [{ outcome: 'acked' }];
    for (const { topic, subscription } of samples) {
      metrics.recordPublish({
        topic,
        published: 1,
        duplicates: 1,
        conflicts: 1,
        durationSeconds: 0.01,
      });
      metrics.recordDelivered({ subscription, events: 1, redelivered: 1, waitSeconds: 1 });
      for (const result of [
        'acked',
        'nacked',
        'released',
        'deferred',
        'dead',
        'lease_lost',
      ] as const) {
        const acked = [{ events: 1, seconds: 1, position: 0 }];
        const call = { subscription, durationSeconds: 0.01, settlements, acked };
        metrics.recordSettleCall({ ...call, results: [result] });
      }
      for (const result of ['2xx', '3xx', '4xx', '5xx', 'failed'] as const) {
        metrics.recordPushRequest({ subscription, result, durationSeconds: 0.1 });
      }
      for (const reason of ['rejected', 'expired'] as const) {
        metrics.recordDeadLettered({ subscription, reason, events: 1 });
      }
      metrics.recordLeasesExpired({ topic, leases: 1 });
      metrics.recordLeasesTakenOver({ topic, leases: 1 });
      metrics.recordEventsExpired({ topic, subscription, events: 1 });
    }
    return (await metrics.registry.metrics())
      .split('\n')
      .filter((line) => line.startsWith('broker_')).length;
  };
  const few = await seriesWith(500);
  const many = await seriesWith(10_000);
  process.stdout.write(`series with 500 subscriptions: ${few}, with 10,000: ${many}\n`);
  expect(many).toBe(few);
  expect(many).toBeLessThan(13_000);
  const text = await metrics.registry.metrics();
  expect(text).toContain('broker_events_delivered_total{subscription="other",service="reaper"}');
});
