import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { findGoneWorkers } from '#db/take-over.ts';
import { WorkerSession, type WorkerSessionOptions } from '#db/worker-session.ts';
import { sql } from 'kysely';
import { aTerm } from '../support/factory.ts';
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
    statementTimeoutMs: 2000,
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

test('a number that is held by somebody is passed over', async () => {
  const blocker = await open();
  await sql`select setval('broker.worker_lock_seq', 1, false)`.execute(db);
  const next = await open();
  expect(next.instance).not.toBe(blocker.instance);
  await Promise.all([blocker, next].map((session) => session.close({ holdsLeases: false })));
});
