/**
 * Goal: what a worker had leased is delivered by another soon after it is gone, whatever its leases last; a worker that lives loses
 * nothing; one that comes back too late changes nothing.
 *
 * Method: endpoints that do not answer keep deliveries in flight for as long as the test wants; the worker that holds them is
 * killed, stopped, or cut off. Times are printed, and asserted at three times what is promised.
 */
import { expect, test } from 'vitest';

import { CrashPostgres } from '#test/support/crash-postgres.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import type { BrokerProcess } from '#test/support/cluster.ts';
import type { Behaviour } from '#test/support/push-receiver.ts';
import { PushStage } from '#test/support/push-stage.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';

/** Hangs the first time that an event comes, and takes it the next. */
const hangsFirst: Behaviour = ({ attempt }) => (attempt === 1 ? 'hang' : { status: 204 });

/** The process whose worker has leases, and what they are marked with. */
async function holderOf(stage: PushStage, events: number): Promise<[BrokerProcess, string]> {
  let found: [BrokerProcess, string] | undefined;
  const look = async (): Promise<void> => {
    const leased = await stage.leased();
    const [name] = Object.keys(leased);
    if (name === undefined || leased[name] !== events) throw new Error(JSON.stringify(leased));
    const holder = stage.cluster.workers.find((worker) => name.startsWith(`${worker.name}.`));
    found = [holder!, name];
  };
  await eventually(look, { what: `${events} leases of one worker` });
  return found!;
}

test('kill -9: its leases are taken over at once, and counted', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({ databaseUrl: database.url });
  const hook = await stage.hook('orders', { behaviour: hangsFirst });
  await stage.publish('orders', 4);
  await hook.arrived(4);
  const [holder] = await holderOf(stage, 4);
  // a term that has just begun takes nothing over
  await eventually(async () => {
    const [row] = await stage.sql<{ is_old: boolean }>(
      `select clock_timestamp() > greatest(elected_at, pg_postmaster_start_time()) + interval '5 seconds' as is_old from broker.leader`,
    );
    expect(row?.is_old).toBe(true);
  });

  const killedAt = performance.now();
  await holder.kill();
  await eventually(() => expect(hook.requests).toHaveLength(8));
  const tookMs = Math.max(...hook.requests.map(({ arrivedAt }) => arrivedAt)) - killedAt;
  console.log(`taken over and delivered ${tookMs.toFixed()} ms after kill -9 (promised: 3000)`);
  expect(tookMs).toBeLessThan(9000);

  expect(hook.requests.slice(4).map(({ attempt }) => attempt)).toEqual([2, 2, 2, 2]);
  expect(hook.badSignatures).toEqual([]);
  await eventually(async () => expect(await stage.leased()).toEqual({}));
  const takenOver = await stage.metric(
    stage.cluster.reapers[0]!.url,
    'broker_leases_taken_over_total',
  );
  expect(takenOver).toBe(4);
});

test('SIGSTOP: its leases are taken over after 10 s; when it goes on it sends nothing stale and settles nothing', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({
    databaseUrl: database.url,
    env: { WORKER_COUNT: '4' },
  });
  // three are in flight, and answered only when the worker stands still; the others wait for their slots
  const hook = await stage.hook('orders', {
    behaviour: ({ attempt }) => ({ status: 204, afterMs: attempt === 1 ? 2000 : 0 }),
  });
  const ids = await stage.publish('orders', 6);
  await hook.arrived(3);
  const [holder, name] = await holderOf(stage, 6);
  holder.pause();
  const pausedAt = performance.now();
  await eventually(
    () =>
      expect(
        new Set(hook.requests.filter(({ attempt }) => attempt > 1).map(({ eventId }) => eventId)),
      ).toEqual(new Set(ids)),
    { timeoutMs: 45_000 },
  );
  console.log(
    `taken over ${(performance.now() - pausedAt).toFixed()} ms after SIGSTOP (promised: 10000 after the last heartbeat)`,
  );
  const seen = hook.requests.length;
  await eventually(async () => expect(await stage.leased()).toEqual({}));

  holder.continue();
  await eventually(() =>
    expect(holder.logs.filter(({ msg }) => msg === 'registered')).toHaveLength(2),
  );
  await eventually(async () =>
    expect(await stage.metric(holder.url, 'broker_events_settled_total', 'outcome="lost"')).toBe(6),
  );
  // what it had in its hands is not sent, and what it claims from here on is claimed in its new life
  await stage.publish('orders', 20);
  await eventually(async () => expect(await stage.sql('select from broker.queue')).toEqual([]));
  const stale = hook.requests.slice(seen).filter(({ eventId }) => ids.includes(eventId));
  expect(stale).toEqual([]);
  const acked = await stage.sql<{ worker: string }>(
    `select distinct worker from broker.attempt where outcome = 'acked'`,
  );
  expect(acked.map(({ worker }) => worker)).not.toContain(name);
});

test('half-open: a worker that the database does not hear any more loses its leases after 10 s', async () => {
  await using database = await cloneDatabase();
  const { port, hostname: host } = new URL(database.url);
  await using proxy = await startTcpProxy({ host, port: Number(port) });
  await using stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
  await using others = await PushStage.start({
    databaseUrl: proxy.through(database.url),
    directUrl: database.url,
    apis: 0,
    reapers: 0,
    workers: 1,
    env: { INSTANCE: 'cut-off' },
  });
  const hook = await stage.hook('orders', { behaviour: hangsFirst });
  // the worker without a proxy is out of the way until the other has everything
  stage.cluster.workers[0]!.pause();
  await stage.publish('orders', 4);
  await hook.arrived(4);
  await eventually(async () =>
    expect(Object.entries(await stage.leased())).toEqual([
      [expect.stringMatching(/^cut-off\./), 4],
    ]),
  );
  proxy.blackhole();
  const cutAt = performance.now();
  stage.cluster.workers[0]!.continue();
  await eventually(() => expect(hook.requests).toHaveLength(8), { timeoutMs: 45_000 });
  console.log(
    `taken over ${(performance.now() - cutAt).toFixed()} ms after the connection fell silent`,
  );
  expect(hook.requests.slice(4).map(({ attempt }) => attempt)).toEqual([2, 2, 2, 2]);
  proxy.restore();
  await others.cluster.workers[0]!.ready();
});

test('a restart of the database doubles nothing: what was in flight is settled when it is back', async () => {
  await using postgres = await CrashPostgres.start();
  await using stage = await PushStage.start({ databaseUrl: postgres.url });
  const hook = await stage.hook('orders', { behaviour: { status: 204, afterMs: 1500 } });
  const ids = await stage.publish('orders', 50);
  await eventually(() => expect(hook.requests.length).toBeGreaterThan(4));
  await postgres.crash();
  // answers come while nothing can be written down
  await eventually(() =>
    expect(hook.requests.some(({ state }) => state === 'answered')).toBe(true),
  );
  await postgres.restart();
  await eventually(async () => expect(await stage.sql('select from broker.queue')).toEqual([]), {
    timeoutMs: 60_000,
  });
  expect(new Set(hook.eventIds)).toEqual(new Set(ids));
  const twice = hook.eventIds.filter((id) => hook.requestsOf(id).length > 1);
  expect(twice).toEqual([]);
  await Promise.all(stage.cluster.all.map((each) => each.ready()));
});

test('SIGTERM: what is in flight ends and is settled, what has not begun is given back with its attempt; exit 0', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({
    databaseUrl: database.url,
    workers: 1,
    env: { WORKER_COUNT: '8' },
  });
  const worker = stage.cluster.workers[0]!;
  const hook = await stage.hook('orders', { behaviour: { status: 204, afterMs: 1000 } });
  const ids = await stage.publish('orders', 40);
  await eventually(() => expect(hook.requests.length).toBeGreaterThan(0));
  await eventually(async () =>
    expect(Object.values(await stage.leased())[0] ?? 0).toBeGreaterThan(hook.requests.length),
  );
  const toldAt = performance.now();
  const exit = await worker.kill('SIGTERM');
  console.log(`drained in ${(performance.now() - toldAt).toFixed()} ms`);
  expect(exit).toEqual({ code: 0, signal: null });
  expect(hook.requests.every(({ state }) => state === 'answered')).toBe(true);
  expect(await stage.leased()).toEqual({});
  const [acked] = await stage.sql<{ n: number }>(
    `select count(*)::int as n from broker.attempt where outcome = 'acked'`,
  );
  expect(acked?.n).toBe(hook.requests.length);
  const left = await stage.sql<{ n: number; attempt: number }>(
    `select sum(event_count)::int as n, attempt from broker.queue group by attempt`,
  );
  expect(left).toEqual([{ n: ids.length - hook.requests.length, attempt: 0 }]);
  expect(await stage.sql(`select from broker.worker where service = 'worker'`)).toEqual([]);

  await worker.start();
  await hook.arrived(ids.length);
  expect(hook.requests.every(({ attempt }) => attempt === 1)).toBe(true);
  expect(hook.requests).toHaveLength(ids.length);
});

test('SIGTERM with an endpoint that does not answer: the delivery counts as failed, and the process ends in time', async () => {
  await using database = await cloneDatabase();
  await using stage = await PushStage.start({
    databaseUrl: database.url,
    workers: 1,
    env: { SHUTDOWN_TIMEOUT_MS: '6000', STATEMENT_TIMEOUT_MS: '2000' },
  });
  const hook = await stage.hook('orders', { behaviour: 'hang' });
  await stage.publish('orders', 3);
  await hook.arrived(3);
  expect(await stage.cluster.workers[0]!.kill('SIGTERM')).toEqual({ code: 0, signal: null });
  expect(await stage.leased()).toEqual({});
  const attempts = await stage.sql<object>(
    `select outcome, error, status from broker.attempt order by first_ordinal`,
  );
  expect(attempts).toEqual(
    Array.from({ length: 3 }, () => ({ outcome: 'nacked', error: 'aborted', status: null })),
  );
});
