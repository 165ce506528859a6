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
});

describe('metrics', () => {
  test('each name is declared once, is ours by name and has a help text', async () => {
    const { registry } = createMetrics({ service: 'api' });
    const names = registry.getMetricsAsArray().map((metric) => metric.name);
    expect(new Set(names).size).toBe(names.length);
    const ours = names.filter((name) => name.startsWith('broker_'));
    expect(ours.toSorted()).toMatchInlineSnapshot(`
      [
        "broker_build_info",
        "broker_database_reconnects_total",
        "broker_dead_letters",
        "broker_delivery_latency_seconds",
        "broker_duty_duration_seconds",
        "broker_events_delivered_total",
        "broker_events_expired_total",
        "broker_events_published_total",
        "broker_events_settled_total",
        "broker_http_request_duration_seconds",
        "broker_http_requests_total",
        "broker_leader",
        "broker_leader_term",
        "broker_leased_events",
        "broker_leases_expired_total",
        "broker_leases_taken_over_total",
        "broker_oldest_waiting_seconds",
        "broker_publish_batch_events",
        "broker_publish_buffer_events",
        "broker_publish_duration_seconds",
        "broker_push_breakers_open",
        "broker_push_buffer_events",
        "broker_push_in_flight",
        "broker_push_request_duration_seconds",
        "broker_push_requests_total",
        "broker_receive_waiting",
        "broker_waiting_events",
        "broker_wakeups_total",
      ]
    `);
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

  test('deliveries and settles count events', async () => {
    const metrics = createMetrics({ service: 'api' });
    metrics.recordDelivered({ subscription: 'billing', events: 100, latencySeconds: -0.1 });
    metrics.recordSettled({ subscription: 'billing', outcome: 'acked', events: 93 });
    metrics.recordSettled({ subscription: 'billing', outcome: 'lost', events: 0 });
    expect(await linesOf(metrics, 'broker_events_delivered_total')).toEqual([
      'broker_events_delivered_total{subscription="billing"} 100',
    ]);
    expect(await linesOf(metrics, 'broker_events_settled_total')).toEqual([
      'broker_events_settled_total{subscription="billing",outcome="acked"} 93',
    ]);
    expect(await linesOf(metrics, 'broker_delivery_latency_seconds_sum')).toEqual([
      'broker_delivery_latency_seconds_sum{subscription="billing"} 0',
    ]);
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
