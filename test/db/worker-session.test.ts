import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { connectDirect } from '#db/direct-connection.ts';
import { findGoneWorkers } from '#db/take-over.ts';
import { WorkerSession, sessionTimes, type WorkerSessionOptions } from '#db/worker-session.ts';
import { aTerm, aWorker } from '../support/factory.ts';
import { untilServerIsOld } from '../support/old-server.ts';
import { startTcpProxy } from '../support/tcp-proxy.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

// Workers are of a whole database, so each test has its own.
let database: VerbDatabase;
let db: Database;
let term: string;
beforeEach(async () => {
  await database?.[Symbol.asyncDispose]();
  database = await openVerbDatabase();
  db = database.db;
  term = await aTerm(db);
  await sql`update broker.leader set elected_at = clock_timestamp() - interval '1 minute'`.execute(
    db,
  );
});
afterAll(() => database[Symbol.asyncDispose]());

beforeAll(untilServerIsOld);

const open = (options: Partial<WorkerSessionOptions> = {}): Promise<WorkerSession> =>
  WorkerSession.open({
    directUrl: database.url,
    applicationName: 'broker-worker-test',
    info: { instance: 'one', service: 'worker', version: '1', host: 'h', pid: 7 },
    heartbeatMs: 20,
    ...options,
  });

const gone = async (): Promise<string[]> => findGoneWorkers(db, term, 10_000);
const rows = () => db.selectFrom('worker').select(['instance', 'gone_at', 'lock_key']).execute();

test('two lives of one name are two workers, and neither is gone', async () => {
  const [first, second] = [await open(), await open()];
  expect(first.instance).not.toBe(second.instance);
  expect(first.instance).toMatch(/^one\.\d+$/);
  expect([first.isTrusted, second.isTrusted]).toEqual([true, true]);
  expect(await gone()).toEqual([]);
  await first.close({ holdsLeases: false });
  expect((await rows()).map((row) => row.instance)).toEqual([second.instance]);
  await second.close({ holdsLeases: false });
});

test('one that ends with leases leaves its row, and is taken for gone at once', async () => {
  const session = await open();
  await session.close({ holdsLeases: true });
  expect(session.isTrusted).toBe(false);
  await expect.poll(gone).toEqual([session.instance]);
});

test('a connection that breaks costs the trust until its lock is taken again, and no life', async () => {
  await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
  let changes = 0;
  const session = await open({
    directUrl: proxy.through(database.url),
    onChange: () => (changes += 1),
  });
  proxy.refuse();
  await expect.poll(() => session.isTrusted).toBe(false);
  expect([session.isGone, changes]).toEqual([false, 0]);
  proxy.restore();
  await expect.poll(() => session.isTrusted).toBe(true);
  expect([session.isGone, changes]).toEqual([false, 1]);
  expect(await gone()).toEqual([]);
  await session.close({ holdsLeases: false });
});

test('one that others have found to be gone meanwhile finds out when it comes back', async () => {
  await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
  let changes = 0;
  const session = await open({
    directUrl: proxy.through(database.url),
    onChange: () => (changes += 1),
  });
  proxy.refuse();
  await expect.poll(gone).toEqual([session.instance]);
  proxy.restore();
  await expect.poll(() => session.isGone).toBe(true);
  expect([session.isTrusted, changes]).toEqual([false, 1]);
  await session.close({ holdsLeases: true });
  expect(await rows()).toMatchObject([{ instance: session.instance, gone_at: expect.any(String) }]);
});

test('it trusts its last proof only for so long, also when no timer has run meanwhile', async () => {
  const session = await open({ heartbeatMs: 60_000, trustMs: 30 });
  expect(session.isTrusted).toBe(true);
  const until = performance.now() + 40;
  // stands still, as a process does between SIGSTOP and SIGCONT
  while (performance.now() < until);
  expect([session.isTrusted, session.isGone]).toEqual([false, false]);
  await session.close({ holdsLeases: false });
});

test('a row that was forgotten is a life that is over', async () => {
  const session = await open();
  await db.deleteFrom('worker').execute();
  await expect.poll(() => session.isGone).toBe(true);
  await session.close({ holdsLeases: false });
});

/** Waits for a lock number on a connection of its own, breaks that of its holder, and keeps the number until it is ended. */
async function steal(lockKey: number): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: database.url });
  client.on('error', () => undefined);
  await client.connect();
  const taken = client.query('select pg_advisory_lock(broker.worker_lock_class(), $1)', [lockKey]);
  await expect.poll(() => lockRows(lockKey)).toHaveLength(2);
  await sql`select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = ${lockKey} and granted`.execute(
    db,
  );
  await taken;
  return client;
}

async function lockRows(lockKey: number): Promise<unknown[]> {
  const { rows } =
    await sql`select pid, granted from pg_locks k join pg_database d on d.oid = k.database
    where locktype = 'advisory' and objid = ${lockKey} and datname = current_database()`.execute(
      db,
    );
  return rows;
}

const numberOf = (session: WorkerSession): number => Number(session.instance.split('.')[1]);

test('one whose number somebody else has by now finds out that others took its leases', async () => {
  let changes = 0;
  const session = await open({ onChange: () => (changes += 1) });
  const thief = await steal(numberOf(session));
  await expect.poll(() => session.isTrusted).toBe(false);
  expect([session.isGone, await gone()]).toEqual([false, []]);
  await sql`update broker.worker set heartbeat_at = clock_timestamp() - interval '11 seconds'`.execute(
    db,
  );
  expect(await gone()).toEqual([session.instance]);
  await expect.poll(() => session.isGone).toBe(true);
  expect(changes).toBe(1);
  await session.close({ holdsLeases: true });
  await thief.end();
});

test('one that cannot have its number for longer than its silence is borne ends that life by itself', async () => {
  const session = await open({ silentMs: 300 });
  const thief = await steal(numberOf(session));
  await expect.poll(() => session.isGone).toBe(true);
  expect(await rows()).toMatchObject([{ instance: session.instance, gone_at: null }]);
  await session.close({ holdsLeases: true });
  await thief.end();
});

test('a heartbeat that the server gives up costs neither the connection nor the lock', async () => {
  const session = await open({ answerMs: 200, trustMs: 1000 });
  const before = await lockRows(numberOf(session));
  await db.transaction().execute(async (slow) => {
    await sql`select from broker.worker for update`.execute(slow);
    await expect.poll(() => session.isTrusted).toBe(false);
  });
  await expect.poll(() => session.isTrusted).toBe(true);
  expect(await lockRows(numberOf(session))).toEqual(before);
  await session.close({ holdsLeases: false });
});

test('a line that falls silent is given up after the time for an answer, whatever other statements may take', async () => {
  await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
  const session = await open({
    directUrl: proxy.through(database.url),
    answerMs: 200,
    trustMs: 600_000,
  });
  proxy.blackhole();
  await expect.poll(() => session.isTrusted).toBe(false);
  proxy.restore();
  await session.close({ holdsLeases: false });
});

test('the trust ends before the server frees the lock of a worker that it does not hear', async () => {
  const connection = await connectDirect({
    url: database.url,
    applicationName: 'settings',
    statementTimeoutMs: 2000,
  });
  const settings = await connection.query<{ seconds: number; user_ms: number }>(
    `select current_setting('tcp_keepalives_idle')::int
        + current_setting('tcp_keepalives_interval')::int * current_setting('tcp_keepalives_count')::int as seconds,
      current_setting('tcp_user_timeout')::int as user_ms`,
  );
  await connection.end();
  const [{ seconds, user_ms: userMs } = { seconds: 0, user_ms: 0 }] = settings;
  const freedMs = Math.min(seconds * 1000, userMs);
  const { trustMs, heartbeatMs, answerMs } = sessionTimes;
  // a second for the way from the last look at it to the request that is sent
  expect(trustMs).toBeLessThanOrEqual(freedMs - 1000);
  // one heartbeat may be as slow as the server allows without a pause
  expect(trustMs).toBeGreaterThan(heartbeatMs + answerMs / 2);
});

test('a number that is held by somebody is passed over', async () => {
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  await client.query('select pg_advisory_lock(broker.worker_lock_class(), 1)');
  const session = await open();
  expect(numberOf(session)).toBe(2);
  await session.close({ holdsLeases: false });
  await client.end();
});

test('a number that a row still carries is passed over although its lock is free: a fail-over may set the sequence back', async () => {
  const worker = await aWorker(db);
  await db.updateTable('worker').set({ lock_key: 1 }).where('instance', '=', worker).execute();
  const session = await open();
  expect(numberOf(session)).toBe(2);
  await session.close({ holdsLeases: false });
});
