/**
 * Goal: what goes wrong with one subscription, one topic, one row or one answer stays there.
 *
 * Method: a worker as a process; a lock that a stranger holds, a claim whose answer is lost, many endpoints that hang together,
 * receivers that ask for time. What must go on is counted while the other cannot.
 */
import pg from 'pg';
import { expect, test } from 'vitest';

import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import type { Behaviour } from '#test/support/push-receiver.ts';
import { PushStage } from '#test/support/push-stage.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';

test('a row that a stranger holds stops its own settle, and nothing else', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
  const held = await stage.hook('held', { behaviour: { status: 204, afterMs: 500 } });
  const other = await stage.hook('other');
  await stage.publish('held', 1);
  await held.arrived(1);
  const stranger = new pg.Client({ connectionString: database.url });
  stranger.on('error', () => undefined);
  await stranger.connect();
  await stranger.query('begin');
  await stranger.query('select from broker.queue for update');
  await eventually(() => expect(held.requests[0]!.state).toBe('answered'));
  held.behaviour = { status: 204 };
  for (let i = 0; i < 3; i += 1) await stage.publish('held', 1000);
  await stage.publish('other', 500);
  await other.arrived(500);
  // also of the same subscription
  await held.arrived(2001, { timeoutMs: 60_000 });
  const [row] = await stage.sql<{ n: number }>('select count(*)::int as n from broker.attempt');
  expect(row!.n).toBeGreaterThan(1000);
  await stranger.query('rollback');
  await stranger.end();
  await eventually(async () => expect(await stage.sql('select from broker.queue')).toEqual([]), {
    timeoutMs: 60_000,
  });
  expect(held.requests).toHaveLength(3001);
});

test('a claim whose answer is lost: what it leased is delivered soon, by a new life', async () => {
  await using database = await cloneDatabase();
  const { port, hostname: host } = new URL(database.url);
  await using proxy = await startTcpProxy({ host, port: Number(port) });
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 0 });
  const hook = await stage.hook('orders');
  await using workers = await PushStage.start({
    databaseUrl: proxy.through(database.url),
    directUrl: database.url,
    apis: 0,
    reapers: 0,
    workers: 1,
    env: { DATABASE_DIRECT_URL: database.url },
  });
  const worker = workers.cluster.workers[0]!;
  await stage.publish('orders', 1);
  await hook.arrived(1);
  await eventually(async () => {
    const [row] = await stage.sql<{ is_old: boolean }>(
      `select clock_timestamp() > greatest(elected_at, pg_postmaster_start_time()) + interval '5 seconds' as is_old from broker.leader`,
    );
    expect(row?.is_old).toBe(true);
  });

  const lost = proxy.cutAfter('broker.claim(');
  const lostAt = performance.now();
  await stage.publish('orders', 10);
  await lost;
  await hook.arrived(11);
  console.log(
    `delivered ${(performance.now() - lostAt).toFixed()} ms after the claim that nobody heard of (promised: 3000)`,
  );
  expect(performance.now() - lostAt).toBeLessThan(9000);
  await eventually(async () => expect(await stage.leased()).toEqual({}));
  expect(worker.logs.map(({ msg }) => msg)).toContain(
    'the outcome of a claim is unknown, it begins anew',
  );
  expect(await worker.kill('SIGTERM')).toEqual({ code: 0, signal: null });
});

test('many endpoints that hang, from the start or when they had many in flight: another still gets its events', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({
    databaseUrl: database.url,
    workers: 1,
    env: { WORKER_COUNT: '32' },
  });
  const grown = [await stage.hook('grown-1'), await stage.hook('grown-2')];
  const good = await stage.hook('good');
  for (const [index, hook] of grown.entries()) {
    for (let i = 0; i < 3; i += 1) await stage.publish(`grown-${index + 1}`, 1000);
    hook.behaviour = (): 'hang' | { status: number } =>
      hook.requests.length > 1000 ? 'hang' : { status: 204 };
  }
  const fresh = await Promise.all(
    Array.from({ length: 8 }, (_, index) => stage.hook(`fresh-${index}`, { behaviour: 'hang' })),
  );
  for (const [index] of fresh.entries()) await stage.publish(`fresh-${index}`, 50);
  const inFlight = (): Promise<number> =>
    stage.metric(stage.cluster.workers[0]!.url, 'broker_push_in_flight');
  await eventually(async () => expect(await inFlight()).toBeGreaterThanOrEqual(24));
  await stage.publish('good', 50);
  await good.arrived(50);
  expect(await inFlight()).toBeGreaterThanOrEqual(24);
});

test('a receiver that asks for time gets it, although others of its answers are still under way', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
  let refusedAt = 0;
  // takes some, slowly, then has enough for two seconds
  const behaviour: Behaviour = ({ number }) => {
    if (number <= 40) return { status: 204, afterMs: 300 };
    if (refusedAt === 0) refusedAt = performance.now();
    const isBusy = performance.now() - refusedAt < 2000;
    return isBusy ? { status: 429, headers: { 'retry-after': '2' } } : { status: 204 };
  };
  const hook = await stage.hook('busy', { behaviour });
  await stage.publish('busy', 300);
  const answered = (status: number): number =>
    hook.requests.filter((request) => request.status === status).length;
  await eventually(() => expect(answered(204)).toBe(300), { timeoutMs: 30_000 });
  // those that were in flight together when it had enough
  console.log(`${answered(429)} times 429`);
  expect(answered(429)).toBeLessThan(100);
  expect(await stage.sql('select from broker.dead_letter')).toEqual([]);
});

test('events that are refused for what they are hold up none behind them', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
  const hook = await stage.hook('picky', {
    behaviour: ({ number }) => ({ status: number <= 100 ? 422 : 204 }),
  });
  await stage.publish('picky', 200);
  await hook.arrived(200);
  await eventually(async () =>
    expect(await stage.sql('select from broker.dead_letter')).toHaveLength(100),
  );
});

test('410 kills nothing, not even what has no attempt left', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
  const hook = await stage.hook('gone', { behaviour: { status: 410 }, maxAttempts: 1 });
  await stage.publish('gone', 100);
  await hook.arrived(1);
  await eventually(async () => expect(await stage.leased()).toEqual({}));
  expect(await stage.sql('select from broker.dead_letter')).toEqual([]);
  hook.behaviour = { status: 204 };
  await stage.http.call(`${stage.api}/subscriptions/gone/resume`, { method: 'POST' });
  await eventually(() =>
    expect(hook.requests.filter(({ status }) => status === 204)).toHaveLength(100),
  );
});

test('claims that fail in one topic are told once, and stop no other', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
  const worker = stage.cluster.workers[0]!;
  const bad = await stage.hook('bad');
  const good = await stage.hook('good');
  await stage.sql(`create function broker.break_claims() returns trigger language plpgsql as $$
    begin
      if new.topic_id = (select id from broker.topic where name = 'bad') then raise exception 'out of order'; end if;
      return new;
    end $$`);
  await stage.sql(
    `create trigger break_claims before update on broker.queue for each row execute function broker.break_claims()`,
  );
  await stage.publish('bad', 10);
  const told = (): number =>
    worker.logs.filter(({ msg }) => String(msg).startsWith('claims fail')).length;
  await eventually(() => expect(told()).toBe(1));
  for (let i = 1; i <= 100; i += 1) {
    await stage.publish('good', 5);
    await good.arrived(5 * i);
  }
  expect(told()).toBe(1);
  await stage.sql('drop trigger break_claims on broker.queue');
  await bad.arrived(10);
});
