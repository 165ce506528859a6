/**
 * Goal: after real traffic each metric that deploy/metrics.md names is there, with the labels that it says; a scrape asks the
 * database nothing; what the leader alone sees goes with it.
 *
 * Method: two APIs, two workers and two reapers as processes; endpoints that answer, refuse and are not there; publishes, acks,
 * refusals, a lease that runs out, a row that is held, a worker that is killed.
 */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { freePort } from '#test/support/cluster.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { documentedMetrics } from '#test/support/documented-metrics.ts';
import { eventually } from '#test/support/eventually.ts';
import { PushStage } from '#test/support/push-stage.ts';

/** Metrics that need more than this traffic, and the test that shows each. */
const elsewhere: Readonly<Record<string, string>> = {
  broker_database_replication_lag_bytes: 'test/unit/metrics-leader.test.ts: no replica here',
  broker_database_replication_lag_seconds: 'test/unit/metrics-leader.test.ts: no replica here',
  broker_events_expired_total: 'test/db/duties.test.ts: retention is an hour at least',
  broker_trace_spans_dropped_total: 'test/system/traces.test.ts: no collector here',
};

/** Of a trace that is kept. */
const traceId = 'a1'.repeat(16);
const traceparent = `00-${traceId}-${'b2'.repeat(8)}-01`;

interface Scrape {
  readonly service: string;
  readonly text: string;
}

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let stage: PushStage;
/** Before a worker is killed, whose counters go with it. */
let beforeKill: readonly Scrape[] = [];

beforeAll(async () => {
  database = await cloneDatabase();
  stage = await PushStage.start({
    databaseUrl: database.url,
    apis: 2,
    workers: 2,
    reapers: 2,
    env: { METRICS_NAMES_MAX: '5' },
  });
});

afterAll(async () => {
  await stage[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

async function scrapeAll(): Promise<Scrape[]> {
  return Promise.all(
    stage.cluster.all
      .filter((each) => each.isRunning)
      .map(async ({ url, service }) => {
        const { status, text } = await stage.http.send(`${url}/api/metrics`);
        expect(status).toBe(200);
        return { service, text };
      }),
  );
}

/** Sets of label names that the samples of a metric have, in any process; without `le` and `service`. */
function labelsOf(scrapes: readonly Scrape[], name: string): Set<string> {
  const sample = new RegExp(`^${name}(?:_count)?\\{([^}]*)\\} \\S+$`, 'gm');
  const found = new Set<string>();
  for (const { text, service } of scrapes) {
    for (const [, labels = ''] of text.matchAll(sample)) {
      // that one says which processes it counts, and not which one counted them
      if (name !== 'broker_processes') expect(labels).toContain(`service="${service}"`);
      const names = [...labels.matchAll(/(\w+)="(?:[^"\\]|\\.)*"/g)].map(([, label = '']) => label);
      found.add(
        names
          .filter((label) => label !== 'service')
          .toSorted()
          .join(),
      );
    }
  }
  return found;
}

async function pull(subscription: string, topic: string, more: object = {}): Promise<void> {
  await stage.http.call(`${stage.api}/topics/${topic}`, { method: 'PUT', body: more });
  const body = {
    topic,
    type: 'pull',
    retry_policy: { max_attempts: 2, minimum_backoff_ms: 1, maximum_backoff_ms: 1 },
  };
  await stage.http.call(`${stage.api}/subscriptions/${subscription}`, { method: 'PUT', body });
}

async function receive(subscription: string, more: object = {}): Promise<string[]> {
  const url = `${stage.api}/subscriptions/${subscription}/receive`;
  const { messages } = await stage.http.call<{ messages: { lease_id: string }[] }>(url, {
    body: { max_messages: 100, wait_seconds: 5, ...more },
  });
  return messages.map((message) => message.lease_id);
}

const settle = async (verb: 'ack' | 'nack', body: object): Promise<unknown> =>
  stage.http.call(`${stage.api}/subscriptions/billing/${verb}`, { body });

/** Publishes, acks, nacks, lets a lease run out and refuses. */
async function pullTraffic(): Promise<void> {
  await pull('billing', 'orders');
  const url = `${stage.api}/topics/orders/events`;
  await stage.http.call(url, { body: { type: 'first', traceparent, id: 'one', source: '/s' } });
  await stage.http.call(url, { body: { type: 'first', traceparent, id: 'one', source: '/s' } });
  await settle('ack', { lease_ids: await receive('billing') });
  await stage.publish('orders', 3);
  const [first, second, third] = await receive('billing');
  await settle('nack', { leases: [{ lease_id: first }, { lease_id: second, dead_letter: true }] });
  await settle('ack', { lease_ids: [third] });
  // the second and last attempt of the first one, whose lease then runs out
  await receive('billing', { visibility_timeout_seconds: 1 });
}

/** Endpoints that work, are gone, and are not there. */
async function pushTraffic(): Promise<void> {
  const good = await stage.hook('mailer', { topic: 'orders' });
  await stage.hook('broken', {
    topic: 'orders',
    behaviour: { status: 500 },
    maxAttempts: 2,
  });
  const endpoint = `http://127.0.0.1:${await freePort()}/nobody`;
  await stage.http.call(`${stage.api}/subscriptions/nobody`, {
    method: 'PUT',
    body: { topic: 'orders', type: 'push', push: { endpoint } },
  });
  await stage.publish('orders', 3);
  await good.arrived(3);
  await eventually(async () => {
    const rows = await stage.sql(
      `select from broker.dead_letter d join broker.subscription s on s.id = d.subscription_id where s.name = 'broken'`,
    );
    expect(rows).toHaveLength(3);
  });
}

/** An ack whose row somebody holds. */
async function blockedAck(): Promise<void> {
  await pull('blocked', 'held');
  await stage.publish('held', 1);
  const ids = await receive('blocked');
  await using holder = Object.assign(new pg.Client({ connectionString: database.url }), {
    [Symbol.asyncDispose]: async () => holder.end(),
  });
  await holder.connect();
  await holder.query('begin');
  await holder.query('select from broker.queue where lease_expires_at is not null for update');
  const { json } = await stage.http.send(`${stage.api}/subscriptions/blocked/ack`, {
    body: { lease_ids: ids },
  });
  expect(json).toMatchObject({ code: 'database_busy' });
}

/** Refused requests, by the code that they are answered with. */
async function refusals(): Promise<void> {
  await pull('full', 'small', { max_backlog: 1 });
  await stage.publish('small', 2);
  const codes: unknown[] = [];
  const ask = async (path: string, options = {}): Promise<void> => {
    const { json } = await stage.http.send(`${stage.api}${path}`, options);
    codes.push((json as { code?: string }).code);
  };
  await ask('/topics/none');
  await ask('/topics/orders/events', { body: { data: 1 } });
  await eventually(async () => {
    await ask('/topics/small/events', { body: { type: 'x' } });
    expect(codes).toContain('backlog_full');
  });
  expect(codes.slice(0, 2)).toEqual(['topic_not_found', 'invalid_event']);
}

test('each metric of the document is there, with its labels', async () => {
  await pullTraffic();
  await pushTraffic();
  await refusals();
  await blockedAck();
  await stage.http.call(`${stage.api}/subscriptions/billing/dlq/redrive`, { body: {} });
  // its leases go to the other one
  const held = await stage.hook('slow', {
    behaviour: ({ attempt }) => (attempt === 1 ? 'hang' : { status: 204 }),
  });
  await stage.publish('slow', 1);
  await held.arrived(1);
  beforeKill = await scrapeAll();
  const [holder] = Object.keys(await stage.leased()).filter((name) => name.startsWith('worker'));
  const worker = stage.cluster.workers.find((each) => holder!.startsWith(`${each.name}.`))!;
  await worker.kill();
  const wanted = documentedMetrics().filter(({ name }) => elsewhere[name] === undefined);
  await eventually(
    async () => {
      const scrapes = await scrapeAll();
      const missing = wanted.filter(({ name, labels }) => {
        const found = labelsOf(scrapes, name);
        const own = labels.filter((label) => label !== 'service');
        return found.size !== 1 || !found.has(own.toSorted().join());
      });
      expect(missing.map(({ name }) => [name, [...labelsOf(scrapes, name)]])).toEqual([]);
    },
    { timeoutMs: 60_000 },
  );
  expect(wanted.length).toBeGreaterThan(55);
});

test('what was refused is counted by its code, what died by its reason, what got no answer by why', async () => {
  const workers = beforeKill.filter(({ service }) => service === 'worker');
  const others = (await scrapeAll()).filter(({ service }) => service !== 'worker');
  const text = [...workers, ...others].map((scrape) => scrape.text).join('\n');
  const sumOf = (name: string, ...labels: string[]): number =>
    text
      .split('\n')
      .filter((line) => line.startsWith(`${name}{`) && labels.every((each) => line.includes(each)))
      .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
  expect(sumOf('broker_http_problems_total', 'code="topic_not_found"')).toBe(1);
  expect(sumOf('broker_http_problems_total', 'code="invalid_event"')).toBe(1);
  expect(sumOf('broker_http_problems_total', 'code="backlog_full"')).toBeGreaterThan(0);
  expect(sumOf('broker_http_problems_total', 'code="internal_error"')).toBe(0);
  expect(sumOf('broker_http_problems_total', 'code="database_busy"')).toBe(1);
  expect(sumOf('broker_database_errors_total', 'class="lock_timeout"')).toBeGreaterThan(0);
  const dead = 'broker_events_dead_lettered_total';
  const billing = 'subscription="billing"';
  expect(sumOf(dead, billing, 'reason="rejected"', 'service="api"')).toBe(1);
  expect(sumOf(dead, billing, 'reason="max_attempts"', 'service="reaper"')).toBe(1);
  expect(sumOf(dead, 'subscription="broken"', 'reason="max_attempts"')).toBe(3);
  expect(sumOf('broker_events_redelivered_total', billing)).toBe(1);
  expect(sumOf('broker_events_redelivered_total', 'subscription="broken"')).toBe(3);
  expect(sumOf('broker_push_failures_total', 'error="connect"')).toBeGreaterThan(0);
  expect(sumOf('broker_workers_gone_total')).toBe(1);
  expect(sumOf('broker_end_to_end_seconds_count', billing)).toBe(2);
  expect(sumOf('broker_end_to_end_seconds_count', 'subscription="mailer"')).toBe(3);
  expect(sumOf('broker_topic_backlog_limit_events', 'topic="small"')).toBe(1);
});

test('an event that was published in a trace which is kept is the exemplar of its bucket', async () => {
  const headers = { accept: 'application/openmetrics-text; version=1.0.0' };
  const answers = await Promise.all(
    stage.cluster.apis.map(async ({ url }) => stage.http.send(`${url}/api/metrics`, { headers })),
  );
  expect(answers[0]!.headers['content-type']).toContain('application/openmetrics-text');
  expect(answers.map(({ text }) => text).join('\n')).toMatch(
    new RegExp(`^broker_queue_wait_seconds_bucket\\{.*\\} \\d+ # \\{trace_id="${traceId}"\\}`, 'm'),
  );
});

test('more names than METRICS_NAMES_MAX share one', async () => {
  for (let n = 1; n <= 12; n += 1) {
    await stage.http.call(`${stage.api}/topics/many-${n}`, { method: 'PUT', body: {} });
    await stage.publish(`many-${n}`, 1);
  }
  const { text } = await stage.http.send(`${stage.cluster.apis[0]!.url}/api/metrics`);
  const topics = [...text.matchAll(/^broker_events_published_total\{topic="([^"]+)"/gm)].map(
    ([, topic]) => topic,
  );
  expect(new Set(topics).size).toBe(6);
  expect(topics).toContain('other');
  expect(text).toMatch(/published_total\{topic="other",result="published",service="api"\} \d+/);
});

test('a scrape asks the database nothing', async () => {
  const api = stage.cluster.apis[1]!;
  const queries = async (): Promise<number> =>
    stage.metric(api.url, 'broker_database_queries_total', 'result="ok"');
  // the process has its heartbeat and its look at the backlog: what is counted are the statements of 200 scrapes
  const before = await queries();
  const began = performance.now();
  for (let n = 0; n < 200; n += 1) await queries();
  const seconds = (performance.now() - began) / 1000;
  const during = (await queries()) - before;
  process.stdout.write(`${during} statements in ${seconds.toFixed(1)} s with 200 scrapes\n`);
  expect(during).toBeLessThan(100);
});

test('what the leader alone sees goes with it, and another takes it over', async () => {
  const leaders = async (): Promise<boolean[]> =>
    Promise.all(
      stage.cluster.reapers.map(async ({ url }) => (await stage.metric(url, 'broker_leader{')) > 0),
    );
  const [isFirst] = await leaders();
  const [leader, other] = isFirst ? stage.cluster.reapers : stage.cluster.reapers.toReversed();
  const seen = async (url: string): Promise<string[]> =>
    (await stage.http.send(`${url}/api/metrics`)).text
      .split('\n')
      .filter((line) => /^broker_(database_size|waiting|processes|duty_last)/.test(line));
  expect((await seen(leader!.url)).length).toBeGreaterThan(5);
  expect(await seen(other!.url)).toEqual([]);
  const term = await stage.metric(leader!.url, 'broker_leader_term');
  // it goes on, and leads no more in this term
  await stage.sql(`select pg_terminate_backend(backend_pid) from broker.leader`);
  await eventually(
    async () => {
      const now = await leaders();
      expect(now.filter(Boolean)).toHaveLength(1);
      const leading = stage.cluster.reapers[now.indexOf(true)]!;
      expect(await stage.metric(leading.url, 'broker_leader_term')).toBeGreaterThan(term);
      const following = stage.cluster.reapers[now.indexOf(false)]!;
      expect((await seen(leading.url)).length).toBeGreaterThan(5);
      expect(await seen(following.url)).toEqual([]);
    },
    { timeoutMs: 30_000 },
  );
});
