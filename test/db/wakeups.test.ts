import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { createDatabase, type Database } from '#db/client.ts';
import {
  announceChange,
  createWakeups,
  NotificationsLost,
  type Wakeups,
  type WakeupsOptions,
} from '#db/wakeups.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';
import { openVerbDatabase, type VerbDatabase } from '#test/support/verbs.ts';
import { eventually } from '../support/eventually.ts';
import { untilListening } from '../support/until-listening.ts';

let database: VerbDatabase;
let db: Database;
let count = 0;

beforeAll(async () => {
  database = await openVerbDatabase(2);
  db = database.db;
});
afterAll(async () => database[Symbol.asyncDispose]());

function open(options: Partial<WakeupsOptions> = {}): Wakeups & { readonly name: string } {
  const name = `wakeups-${++count}`;
  const wakeups = createWakeups({
    db,
    directUrl: database.url,
    applicationName: name,
    backoffMaxMs: 200,
    ...options,
  });
  return Object.assign(wakeups, { name });
}

/** Hears every NOTIFY as a stranger would. */
async function listenRaw() {
  const client = new pg.Client({ connectionString: database.url });
  const payloads: string[] = [];
  await client.connect();
  client.on('notification', ({ payload }) => {
    if (payload?.startsWith('{') === true) payloads.push(payload);
  });
  await client.query('listen broker_wake');
  return {
    payloads,
    /** When this returns, everything that was sent before has come. */
    flush: async () => void (await client.query('select 1')),
    [Symbol.asyncDispose]: async () => client.end(),
  };
}

async function terminate(applicationName: string): Promise<void> {
  await sql`select pg_terminate_backend(pid) from pg_stat_activity
    where application_name = ${applicationName} and datname = current_database()`.execute(db);
}

describe('a wake-up', () => {
  test('calls the listeners of its own process at once and only once, those of others soon', async () => {
    await using near = open();
    await using far = open();
    await untilListening(near, far);
    const heard: string[] = [];
    near.onWake(1, (mark) => heard.push(`near 1 ${mark}`));
    near.onWake(2, () => heard.push('near 2'));
    far.onWake(1, (mark) => heard.push(`far 1 ${mark}`));
    near.wake(7, [1], '2025-01-01T00:00:00Z');
    expect(heard).toEqual(['near 1 2025-01-01T00:00:00Z']);
    await eventually(() => expect(heard).toHaveLength(2));
    // a change is heard after the echo of the wake-up would have been
    const changed = Promise.withResolvers<void>();
    near.onChange(() => changed.resolve());
    await announceChange(db, 'topic', 'x');
    await changed.promise;
    expect(heard).toEqual(['near 1 2025-01-01T00:00:00Z', 'far 1 2025-01-01T00:00:00Z']);
  });

  test('that is unsubscribed hears nothing and leaves nothing behind', async () => {
    await using wakeups = open();
    const listener = vi.fn();
    const unsubscribe = wakeups.onWake(1, listener);
    unsubscribe();
    unsubscribe();
    wakeups.wake(1, [1]);
    expect(listener).not.toHaveBeenCalled();
  });

  test('of one topic goes once in 20 ms, the first at once, with all subscriptions of that time', async () => {
    await using raw = await listenRaw();
    await using wakeups = open({ coalesceMs: 20 });
    await untilListening(wakeups);
    const began = performance.now();
    let sent = 0;
    while (performance.now() - began < 200) {
      wakeups.wake(1, [(sent += 1) % 50], `2025-01-01T00:00:00.${100 + (sent % 7)}Z`);
      await new Promise(setImmediate);
    }
    const tookMs = performance.now() - began;
    await wakeups.close();
    await raw.flush();
    expect(sent).toBeGreaterThan(100);
    expect(raw.payloads.length).toBeLessThanOrEqual(tookMs / 20 + 2);
    expect(raw.payloads.length).toBeGreaterThan(1);
    const payloads = raw.payloads.map(
      (payload) => JSON.parse(payload) as { subscriptions: number[]; mark: string },
    );
    expect(payloads[0]?.subscriptions).toEqual([1]);
    expect(payloads.slice(1).some(({ mark }) => mark === '2025-01-01T00:00:00.100Z')).toBe(true);
  });

  test('of another topic does not wait for the one before', async () => {
    await using wakeups = open({ coalesceMs: 60_000 });
    await using raw = await listenRaw();
    await untilListening(wakeups);
    wakeups.wake(1, [1]);
    wakeups.wake(1, [2]);
    wakeups.wake(2, [3]);
    await eventually(async () => {
      await raw.flush();
      expect(raw.payloads).toHaveLength(2);
    });
    await wakeups.close();
    await raw.flush();
    expect(raw.payloads).toHaveLength(3);
  });

  test('of thousands of subscriptions names none and wakes all', async () => {
    await using raw = await listenRaw();
    await using near = open();
    await using far = open();
    await untilListening(near, far);
    const heard = new Set<number>();
    for (const id of [1, 4000, 9_000_000]) far.onWake(id, () => heard.add(id));
    near.wake(
      3,
      Array.from({ length: 5000 }, (_, index) => 1_000_000_000 + index),
    );
    await eventually(() => expect(heard.size).toBe(3));
    near.wake(
      4,
      Array.from({ length: 700 }, (_, index) => 1_000_000_000 + index),
    );
    await near.close();
    await raw.flush();
    expect(raw.payloads).toHaveLength(2);
    expect(raw.payloads[1]?.length).toBeGreaterThan(7000);
    for (const payload of raw.payloads) expect(Buffer.byteLength(payload)).toBeLessThan(8000);
  });

  test('while the database is away is kept as one record per topic, and lost after that', async () => {
    const down = createDatabase({
      url: 'postgres://broker@127.0.0.1:1/broker',
      applicationName: 'down',
      poolMax: 1,
      statementTimeoutMs: 1000,
    });
    const onSent = vi.fn();
    await using wakeups = open({ db: down.db, onSent });
    const listener = vi.fn();
    wakeups.onWake(1, listener);
    for (let round = 0; round < 1000; round += 1) wakeups.wake(round % 10, [1]);
    expect(listener).toHaveBeenCalledTimes(1000);
    await wakeups.close();
    expect(onSent).not.toHaveBeenCalled();
    await down.close();
  });

  test('that another release or a person wrote wrongly is passed over', async () => {
    await using wakeups = open();
    await untilListening(wakeups);
    const listener = vi.fn();
    wakeups.onWake(1, listener);
    for (const payload of ['', '[', 'null', '1', '{}', '{"topic":"x"}', 'probe ']) {
      await sql`select pg_notify('broker_wake', ${payload})`.execute(db);
    }
    await sql`select pg_notify('broker_changed', ${'nonsense'})`.execute(db);
    await sql`select pg_notify('broker_wake', '{"topic":1,"subscriptions":[1]}')`.execute(db);
    await eventually(() => expect(listener).toHaveBeenCalledTimes(1));
  });
});

test('a change is heard by every process, with its name as it is', async () => {
  await using one = open();
  await using two = open();
  await untilListening(one, two);
  const heard: string[] = [];
  one.onChange((kind, name) => heard.push(`one ${kind} ${name}`));
  two.onChange((kind, name) => heard.push(`two ${kind} ${name}`));
  await announceChange(db, 'api_key', 'a name with spaces');
  await eventually(() => expect(heard).toHaveLength(2));
  expect(heard.toSorted()).toEqual([
    'one api_key a name with spaces',
    'two api_key a name with spaces',
  ]);
});

describe('listening', () => {
  test('begins again after the connection was terminated, and says so once', async () => {
    const onProblem = vi.fn();
    const onRecovered = vi.fn();
    await using wakeups = open({ onProblem, onRecovered });
    const onReconnect = vi.fn();
    wakeups.onReconnect(onReconnect);
    await untilListening(wakeups);
    expect(onReconnect).toHaveBeenCalledTimes(1);
    await terminate(wakeups.name);
    await eventually(() => expect(onRecovered).toHaveBeenCalledTimes(1), { timeoutMs: 5000 });
    expect(onProblem).toHaveBeenCalledTimes(1);
    expect(onReconnect).toHaveBeenCalledTimes(2);
    const listener = vi.fn();
    wakeups.onChange(listener);
    await announceChange(db, 'topic', 'orders');
    await eventually(() => expect(listener).toHaveBeenCalledWith('topic', 'orders'));
  });

  test('notices a connection that fell silent, and begins again when the network is back', async () => {
    await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
    const onProblem = vi.fn();
    await using wakeups = open({
      directUrl: proxy.through(database.url),
      onProblem,
      pingMs: 50,
      answerMs: 300,
    });
    await untilListening(wakeups);
    proxy.blackhole();
    await eventually(() => expect(wakeups.listening).toBe(false), { timeoutMs: 3000 });
    expect(onProblem).toHaveBeenCalledTimes(1);
    proxy.restore();
    await eventually(() => expect(wakeups.listening).toBe(true), { timeoutMs: 10_000 });
    expect(onProblem).toHaveBeenCalledTimes(1);
  });

  test('that hears nothing of itself is said to be lost, and wake-ups inside the process go on', async () => {
    // what a transaction pooler does: another server session answers than the one that listens
    const other = await openVerbDatabase(1);
    const problems: unknown[] = [];
    await using wakeups = open({
      db: other.db,
      answerMs: 100,
      onProblem: (problem) => problems.push(problem),
    });
    await eventually(() => expect(problems).toHaveLength(1), { timeoutMs: 5000 });
    expect(problems[0]).toBeInstanceOf(NotificationsLost);
    expect(wakeups.listening).toBe(false);
    const listener = vi.fn();
    wakeups.onWake(1, listener);
    wakeups.wake(1, [1]);
    expect(listener).toHaveBeenCalledTimes(1);
    await wakeups.close();
    await other[Symbol.asyncDispose]();
  });

  test('leaves no connection behind, closed at whatever moment', async () => {
    const names: string[] = [];
    for (let round = 0; round < 20; round += 1) {
      const wakeups = open();
      names.push(wakeups.name);
      wakeups.wake(1, [1]);
      if (round % 2 === 0) await new Promise((resolve) => setTimeout(resolve, round));
      await wakeups.close();
      await wakeups.close();
    }
    await eventually(
      async () => {
        const { rows } = await sql`select pid from pg_stat_activity
        where application_name = any (${names})`.execute(db);
        expect(rows).toHaveLength(0);
      },
      { timeoutMs: 5000 },
    );
  });
});

test('a wake-up that comes back says how long that took; one of another process says nothing', async () => {
  const latencies: number[] = [];
  const onEcho = (latencyMs: number): void => void latencies.push(latencyMs);
  const heard = vi.fn();
  await using wakeups = open({ onEcho });
  await using other = open();
  await Promise.all([untilListening(wakeups), untilListening(other)]);
  other.onEveryWake(heard);
  const began = performance.now();
  wakeups.wake(1, [1]);
  await eventually(() => expect(latencies).toHaveLength(1));
  expect(latencies[0]).toBeGreaterThan(0);
  expect(latencies[0]).toBeLessThanOrEqual(performance.now() - began + 1);
  await eventually(() => expect(heard).toHaveBeenCalledTimes(1));
  other.wake(1, [2]);
  await eventually(() => expect(heard).toHaveBeenCalledTimes(2));
  wakeups.wake(1, [3]);
  await eventually(() => expect(latencies).toHaveLength(2));
});
