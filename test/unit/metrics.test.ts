import { describe, expect, test } from 'vitest';
import { type BacklogSample, createMetrics, type Metrics } from '#runtime/metrics.ts';
import { version } from '#runtime/version.ts';

/** The lines of our own metrics, without the label that all have. */
async function linesOf(metrics: Metrics, name: string): Promise<string[]> {
  const text = await metrics.registry.metrics();
  return text
    .split('\n')
    .filter((line) => line.startsWith(name))
    .map(withoutService);
}

function withoutService(text: string): string {
  return text
    .replaceAll(/,?service="api",?/g, ',')
    .replaceAll('{,', '{')
    .replaceAll(',}', '}')
    .replaceAll('{}', '');
}

const sample = (subscription: string, waiting: number): BacklogSample => ({
  topic: 'orders',
  subscription,
  waiting,
  leased: 2,
  oldestWaitingSeconds: 1.5,
  deadLetters: 1,
  backlogLimit: 1000,
});

describe('metrics', () => {
  test('each name is declared once, is ours by name and has a help text', async () => {
    const { registry } = createMetrics({ service: 'api' });
    const names = registry.getMetricsAsArray().map((metric) => metric.name);
    expect(new Set(names).size).toBe(names.length);
    // deploy/metrics.md has them all (test/unit/metrics-document.test.ts)
    const ours = names.filter((name) => name.startsWith('broker_'));
    expect(ours.length).toBeGreaterThan(60);
    const text = await registry.metrics();
    for (const name of ours) expect(text).toMatch(new RegExp(`# HELP ${name} \\S+`));
    expect(names).toContain('nodejs_eventloop_lag_seconds');
    expect(text).toContain(`broker_build_info{version="${version}",service="api"} 1`);
  });

  test('two registries do not know of each other', async () => {
    const [one, other] = [createMetrics({ service: 'api' }), createMetrics({ service: 'api' })];
    one.recordDatabaseReconnect();
    expect(await linesOf(other, 'broker_database_reconnects_total')).toEqual([
      'broker_database_reconnects_total 0',
    ]);
  });

  test('a publish call counts its events by result, its duration and its size', async () => {
    const metrics = createMetrics({ service: 'api' });
    metrics.recordPublish({
      topic: 'orders',
      published: 7,
      duplicates: 2,
      conflicts: 0,
      durationSeconds: 0.004,
    });
    expect(await linesOf(metrics, 'broker_events_published_total')).toEqual([
      'broker_events_published_total{topic="orders",result="published"} 7',
      'broker_events_published_total{topic="orders",result="duplicate"} 2',
    ]);
    expect(await linesOf(metrics, 'broker_publish_duration_seconds_count')).toEqual([
      'broker_publish_duration_seconds_count 1',
    ]);
    expect(await linesOf(metrics, 'broker_publish_batch_events_sum')).toEqual([
      'broker_publish_batch_events_sum 9',
    ]);
  });

  test('what is handed out counts events, the second time too, and how long each had been due', async () => {
    const metrics = createMetrics({ service: 'api' });
    const entry = { subscription: 'billing', events: 100, redelivered: 0, waitSeconds: -0.1 };
    metrics.recordDelivered(entry);
    metrics.recordDelivered({ ...entry, events: 3, redelivered: 3, waitSeconds: 2 });
    expect(await linesOf(metrics, 'broker_events_delivered_total')).toEqual([
      'broker_events_delivered_total{subscription="billing"} 103',
    ]);
    expect(await linesOf(metrics, 'broker_events_redelivered_total')).toEqual([
      'broker_events_redelivered_total{subscription="billing"} 3',
    ]);
    expect(await linesOf(metrics, 'broker_queue_wait_seconds_sum')).toEqual([
      'broker_queue_wait_seconds_sum{subscription="billing"} 6',
    ]);
    const buckets = await linesOf(metrics, 'broker_queue_wait_seconds_bucket');
    expect(buckets.find((line) => line.includes('le="1"'))).toMatch(/ 100$/);
    expect(buckets.find((line) => line.includes('le="5"'))).toMatch(/ 103$/);
    expect(buckets.at(-1)).toMatch(/le="\+Inf",subscription="billing"\} 103$/);
  });

  test('a settle call counts outcomes, dead letters by reason, and from publish to ack each event', async () => {
    const metrics = createMetrics({ service: 'api' });
    metrics.recordSettleCall({
      subscription: 'billing',
      durationSeconds: 0.003,
      settlements: ['acked', 'acked', 'acked', 'nacked', 'rejected', 'nacked'].map((outcome) => ({
        outcome,
      })),
      results: ['acked', 'acked', 'lease_lost', 'dead', 'dead', 'nacked'],
      acked: [{ events: 2, seconds: 0.4, position: 0 }],
    });
    expect(await linesOf(metrics, 'broker_events_settled_total')).toEqual([
      'broker_events_settled_total{subscription="billing",outcome="acked"} 2',
      'broker_events_settled_total{subscription="billing",outcome="lost"} 1',
      'broker_events_settled_total{subscription="billing",outcome="dead"} 2',
      'broker_events_settled_total{subscription="billing",outcome="nacked"} 1',
    ]);
    expect(await linesOf(metrics, 'broker_events_dead_lettered_total')).toEqual([
      'broker_events_dead_lettered_total{subscription="billing",reason="rejected"} 1',
      'broker_events_dead_lettered_total{subscription="billing",reason="max_attempts"} 1',
    ]);
    expect(await linesOf(metrics, 'broker_end_to_end_seconds_sum')).toEqual([
      'broker_end_to_end_seconds_sum{subscription="billing"} 0.8',
    ]);
    expect(await linesOf(metrics, 'broker_settle_batch_events_sum')).toEqual([
      'broker_settle_batch_events_sum 6',
    ]);
  });

  test('claims are counted by what they found', async () => {
    const metrics = createMetrics({ service: 'api' });
    expect(await linesOf(metrics, 'broker_claims_total')).toHaveLength(3);
    for (const events of [7, 0, 0, undefined]) {
      metrics.recordClaim({ events, durationSeconds: 0.01 });
    }
    expect(await linesOf(metrics, 'broker_claims_total')).toEqual([
      'broker_claims_total{result="found"} 1',
      'broker_claims_total{result="empty"} 2',
      'broker_claims_total{result="failed"} 1',
    ]);
    expect(await linesOf(metrics, 'broker_claim_events_sum')).toEqual([
      'broker_claim_events_sum 7',
    ]);
    expect(await linesOf(metrics, 'broker_claim_duration_seconds_count')).toEqual([
      'broker_claim_duration_seconds_count 4',
    ]);
  });

  test('statements are counted with the class of their error, and pools of one process together', async () => {
    const metrics = createMetrics({ service: 'api' });
    for (const errorClass of [undefined, undefined, 'lock_timeout']) {
      metrics.recordDatabaseQuery(errorClass);
    }
    metrics.watchPool(() => ({ idle: 1, used: 2, waiting: 3, max: 4 }));
    metrics.watchPool(() => ({ idle: 1, used: 0, waiting: 0, max: 4 }));
    const text = withoutService(await metrics.registry.metrics());
    expect(text).toContain('broker_database_queries_total{result="ok"} 2');
    expect(text).toContain('broker_database_queries_total{result="failed"} 1');
    expect(text).toContain('broker_database_errors_total{class="lock_timeout"} 1');
    expect(text).toContain('broker_database_pool_connections{state="idle"} 2');
    expect(text).toContain('broker_database_pool_connections{state="used"} 2');
    expect(text).toContain('broker_database_pool_waiting 3');
    expect(text).toContain('broker_database_pool_connections_max 8');
    expect(text).toMatch(/^broker_process_memory_limit_bytes \d{7,}$/m);
    expect(text).toMatch(/^broker_process_cpu_limit_cores [\d.]+$/m);
  });

  test('a subscription that is gone leaves no gauge behind, nor does a leader that lost', async () => {
    const metrics = createMetrics({ service: 'api' });
    metrics.setLeader({ isLeader: true, term: 4 });
    metrics.setBacklog([sample('billing', 5), sample('mailer', 6)]);
    metrics.setBacklog([sample('mailer', 7)]);
    const labels = '{topic="orders",subscription="mailer"}';
    expect(await linesOf(metrics, 'broker_waiting_events')).toEqual([
      `broker_waiting_events${labels} 7`,
    ]);
    expect(await linesOf(metrics, 'broker_dead_letters')).toEqual([
      `broker_dead_letters${labels} 1`,
    ]);
    metrics.setLeader({ isLeader: false, term: 4 });
    for (const name of [
      'waiting_events',
      'leased_events',
      'oldest_waiting_seconds',
      'dead_letters',
      'topic_backlog_limit_events',
    ]) {
      expect(await linesOf(metrics, `broker_${name}`)).toEqual([]);
    }
    expect(await linesOf(metrics, 'broker_leader')).toEqual([
      'broker_leader 0',
      'broker_leader_term 4',
    ]);
  });

  test('requests, duties, wake-ups and what the leader took back are counted', async () => {
    const metrics = createMetrics({ service: 'api' });
    const route = '/api/v1/topics/:topic';
    metrics.recordHttpRequest({ method: 'GET', route, status: 200, durationSeconds: 0.01 });
    metrics.recordDuty({ duty: 'reap', result: 'done', durationSeconds: 0.01 });
    metrics.recordWakeUps('sent');
    metrics.recordWakeUps('received', 3);
    metrics.recordLeasesExpired({ topic: 'orders', leases: 2 });
    metrics.recordEventsExpired({ topic: 'orders', subscription: 'billing', events: 4 });
    metrics.setPublishBuffer(11);
    metrics.setReceiveWaiting(12);
    const text = withoutService(await metrics.registry.metrics());
    expect(text).toContain(
      `broker_http_requests_total{method="GET",route="${route}",status="200"} 1`,
    );
    expect(text).toContain('broker_duty_duration_seconds_count{duty="reap",result="done"} 1');
    expect(text).toContain('broker_wakeups_total{kind="sent"} 1');
    expect(text).toContain('broker_wakeups_total{kind="received"} 3');
    expect(text).toContain('broker_leases_expired_total{topic="orders"} 2');
    expect(text).toContain('broker_events_expired_total{topic="orders",subscription="billing"} 4');
    expect(text).toContain('broker_publish_buffer_events 11');
    expect(text).toContain('broker_receive_waiting 12');
  });
});

test('regression: promtool complains of gauges that are named like counters', async () => {
  const { registry } = createMetrics({ service: 'api' });
  const text = await registry.metrics();
  expect(text).toMatch(/^# TYPE nodejs_active_handles gauge$/m);
  for (const [, name, type] of text.matchAll(/^# TYPE (\S+_total) (\S+)$/gm)) {
    expect([name, type]).toEqual([name, 'counter']);
  }
});
