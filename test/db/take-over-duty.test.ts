// Goal: a lease of a worker that is gone comes back whoever leads, also when who marked the worker died before it took everything.
import { sql } from 'kysely';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { claim } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { findGoneWorkers } from '#db/take-over.ts';
import { createMetrics, type Metrics } from '#runtime/metrics.ts';
import { takeOverLeases } from '../../apps/reaper/take-over.ts';
import type { DutyRun } from '../../apps/reaper/term.ts';
import { aSubscription, aTerm, aTopic, aWorker, publishMany } from '../support/factory.ts';
import { untilServerIsOld } from '../support/old-server.ts';
import { openVerbDatabase, queueRows, type VerbDatabase } from '../support/verbs.ts';

// Workers are of a whole database, so each test has its own.
let database: VerbDatabase;
let db: Database;
let term: string;
beforeEach(async () => {
  await database?.[Symbol.asyncDispose]();
  database = await openVerbDatabase();
  db = database.db;
  await beginTerm();
});
afterAll(() => database[Symbol.asyncDispose]());

beforeAll(untilServerIsOld);

/** One that is old enough to mark workers. */
async function beginTerm(): Promise<void> {
  term = await aTerm(db);
  await sql`update broker.leader set elected_at = clock_timestamp() - interval '1 minute'`.execute(
    db,
  );
}

/** A worker with leases; returns the subscription that they are of. */
async function aWorkerWithLeases(): Promise<number> {
  const worker = await aWorker(db);
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, 3);
  const room = { subscription_id: subscription, events: 10, bytes: 1 << 20 };
  await claim(db, topic, [room], { leaseMs: 360_000, leasedBy: worker });
  return subscription;
}

/** What a new leader runs, and whom it woke. */
async function newTerm(): Promise<{
  readonly run: DutyRun;
  readonly woken: number[];
  readonly metrics: Metrics;
}> {
  await beginTerm();
  const woken: number[] = [];
  const metrics = createMetrics({ service: 'reaper' });
  const run = takeOverLeases({
    db,
    term,
    wakeups: { wake: (_, ids) => void woken.push(...ids) },
    metrics,
    signal: new AbortController().signal,
    lookBackMs: 10_000,
  });
  return { run, woken, metrics };
}

/** Marked by a leader that died before it took anything over, so long ago. */
async function markedAgo(minutes: number): Promise<void> {
  await findGoneWorkers(db, term, 10_000);
  await sql`update broker.worker set gone_at = clock_timestamp() - ${minutes} * interval '1 minute'`.execute(
    db,
  );
}

const isLeased = async (subscription: number): Promise<boolean> =>
  (await queueRows(db, subscription)).some((row) => row.lease_expires_at !== null);

test('a term takes over from who was marked in an earlier term, although nobody led for minutes after', async () => {
  // more than are looked at in one call, and those with leases not all among the first
  const first = await aWorkerWithLeases();
  for (let other = 0; other < 45; other += 1) await aWorker(db);
  const last = await aWorkerWithLeases();
  await markedAgo(5);
  const { run, woken } = await newTerm();
  await run();
  expect([await isLeased(first), await isLeased(last)]).toEqual([false, false]);
  expect(new Set(woken)).toEqual(new Set([first, last]));
});

test('it looks far back until a round has seen no lease, also one that somebody holds at the moment', async () => {
  const first = await aWorkerWithLeases();
  await markedAgo(5);
  const { run } = await newTerm();
  const other = database.another();
  await other.db.transaction().execute(async (settling) => {
    await sql`select from broker.queue for update`.execute(settling);
    await run();
  });
  expect(await isLeased(first)).toBe(true);
  await run();
  expect(await isLeased(first)).toBe(false);
  // nothing is left: from here on as long as a claim may be under way
  await run();
  const second = await aWorkerWithLeases();
  await markedAgo(5);
  await run();
  expect(await isLeased(second)).toBe(true);
  await (await newTerm()).run();
  expect(await isLeased(second)).toBe(false);
});

test('a round that failed is no clear one', async () => {
  const subscription = await aWorkerWithLeases();
  await markedAgo(5);
  const { run } = await newTerm();
  await sql`alter function broker.topics_leased_by(text[]) rename to away`.execute(db);
  await expect(run()).rejects.toThrow('topics_leased_by');
  await sql`alter function broker.away(text[]) rename to topics_leased_by`.execute(db);
  await run();
  expect(await isLeased(subscription)).toBe(false);
});

test('a worker counts as gone once in each of its lives, and not again in the next term', async () => {
  const goneOf = async ({ registry }: Metrics): Promise<string | undefined> =>
    /^broker_workers_gone_total\S* (\d+)$/m.exec(await registry.metrics())?.[1];
  await aWorker(db);
  await markedAgo(5);
  const { run, metrics } = await newTerm();
  await run();
  expect(await goneOf(metrics)).toBe('0');
  const subscription = await aWorkerWithLeases();
  for (let round = 0; round < 3; round += 1) await run();
  expect(await isLeased(subscription)).toBe(false);
  expect(await goneOf(metrics)).toBe('1');
  // it came back, and went again
  const revive = sql`update broker.worker set gone_at = null, heartbeat_at = clock_timestamp() - interval '1 minute'`;
  await sql`update broker.worker set gone_at = clock_timestamp() - interval '1 minute'`.execute(db);
  await run();
  await sql`delete from broker.worker where instance <> (select max(instance) from broker.worker)`.execute(
    db,
  );
  await revive.execute(db);
  await run();
  await run();
  expect(await goneOf(metrics)).toBe('2');
  const next = await newTerm();
  await next.run();
  await next.run();
  expect(await goneOf(next.metrics)).toBe('0');
});
