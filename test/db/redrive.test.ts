import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { createRedriveJob, findJob } from '#db/jobs.ts';
import { failJob, redrive, unfinishedRedrives } from '#db/redrive.ts';
import { aSubscription, aTerm, aTopic, publishMany } from '#test/support/factory.ts';
import {
  claimSome,
  deadLetters,
  openVerbDatabase,
  queueRows,
  settleAll,
  type VerbDatabase,
} from '#test/support/verbs.ts';

let database: VerbDatabase;
let db: Database;
let term: string;

beforeAll(async () => {
  database = await openVerbDatabase();
  db = database.db;
  term = await aTerm(db);
});
afterAll(async () => database[Symbol.asyncDispose]());

async function withDeadLetters(count: number, data?: string) {
  const topicId = await aTopic(db);
  const subscriptionId = await aSubscription(db, topicId);
  const bystander = await aSubscription(db, topicId);
  const ids = await publishMany(
    db,
    topicId,
    count,
    data === undefined ? {} : { data, bytes: data.length },
  );
  for (let left = count; left > 0;) {
    const events = await claimSome(db, topicId, subscriptionId, 1000, { bytes: 1 << 30 });
    await settleAll(db, topicId, events, { outcome: 'rejected', error: 'no use' });
    left -= events.length;
  }
  return { topicId, subscriptionId, bystander, ids };
}

async function aJob(topicId: number, subscriptionId: number): Promise<string> {
  const job = await createRedriveJob(db, topicId, subscriptionId);
  if (job.status !== 'created') throw new Error(job.status);
  return job.id;
}

async function redriveAll(topicId: number, jobId: string): Promise<number[]> {
  const pieces: number[] = [];
  for (;;) {
    const piece = await redrive(db, topicId, term, { jobId, limit: 100 });
    pieces.push(piece.redriven);
    if (piece.finished) return pieces;
  }
}

describe('a redrive', () => {
  test('brings events back with their first id, text and order, and attempts from 0, to their subscription alone', async () => {
    const { topicId, subscriptionId, bystander, ids } = await withDeadLetters(250);
    const bystanders = await queueRows(db, bystander);
    const jobId = await aJob(topicId, subscriptionId);
    expect((await unfinishedRedrives(db)).map((job) => job.id)).toContain(jobId);
    expect(await redriveAll(topicId, jobId)).toEqual([100, 100, 50]);
    expect(await deadLetters(db, subscriptionId)).toEqual([]);
    expect(await findJob(db, jobId)).toMatchObject({ state: 'succeeded', total: 250, done: 250 });
    expect((await unfinishedRedrives(db)).map((job) => job.id)).not.toContain(jobId);
    expect(await queueRows(db, bystander)).toMatchObject(bystanders.map(({ id }) => ({ id })));

    const events = await claimSome(db, topicId, subscriptionId, 1000);
    expect(events.map((event) => event.event_id).toSorted()).toEqual(ids.toSorted());
    expect(new Set(events.map((event) => event.attempt))).toEqual(new Set([1]));
    // dead a second time, it still has its first id
    await settleAll(db, topicId, events, { outcome: 'rejected', error: 'still no use' });
    await redriveAll(topicId, await aJob(topicId, subscriptionId));
    const again = await claimSome(db, topicId, subscriptionId, 1000);
    expect(again.map((event) => event.event_id).toSorted()).toEqual(ids.toSorted());
    expect(again[0]!.data).toMatch(/^\{"number":\d+\}$/);
  });

  test('takes only what was dead when the job was made', async () => {
    const { topicId, subscriptionId } = await withDeadLetters(3);
    const jobId = await aJob(topicId, subscriptionId);
    await publishMany(db, topicId, 2);
    const events = await claimSome(db, topicId, subscriptionId, 10);
    await settleAll(db, topicId, events, { outcome: 'rejected' });
    expect(await redriveAll(topicId, jobId)).toEqual([3]);
    expect(await deadLetters(db, subscriptionId)).toHaveLength(2);
  });

  test('cuts entries at 1 MiB', async () => {
    const { topicId, subscriptionId } = await withDeadLetters(
      10,
      JSON.stringify('x'.repeat(250_000)),
    );
    await redriveAll(topicId, await aJob(topicId, subscriptionId));
    const entries = await queueRows(db, subscriptionId);
    expect(entries.length).toBeGreaterThan(2);
    for (const entry of entries) expect(entry.bytes).toBeLessThanOrEqual(1 << 20);
    expect(entries.flatMap((entry) => entry.ordinals).toSorted((a, b) => a - b)).toEqual([
      ...Array(10).keys(),
    ]);
  });

  test('of an old term is refused and changes nothing', async () => {
    const { topicId, subscriptionId } = await withDeadLetters(3);
    const jobId = await aJob(topicId, subscriptionId);
    const old = String(BigInt(term) - 1n);
    await expect(redrive(db, topicId, old, { jobId, limit: 100 })).rejects.toSatisfy(
      (error) => faultOf(error) === 'term_over',
    );
    expect(await deadLetters(db, subscriptionId)).toHaveLength(3);
    expect(await findJob(db, jobId)).toMatchObject({ state: 'waiting', done: 0 });
  });

  test('into a span that has no partition yet makes it', async () => {
    const { topicId, subscriptionId } = await withDeadLetters(2);
    await sql`update broker.topic set retention_seconds = 2592000, retention_class = 720 where id = ${topicId}`.execute(
      db,
    );
    expect(await redriveAll(topicId, await aJob(topicId, subscriptionId))).toEqual([2]);
    expect(await claimSome(db, topicId, subscriptionId, 10)).toHaveLength(2);
  });
});

describe('a redrive with a rate', () => {
  async function aRatedJob(count: number, rate: number): Promise<[number, string]> {
    const { topicId, subscriptionId } = await withDeadLetters(count);
    const job = await createRedriveJob(db, topicId, subscriptionId, rate);
    return [topicId, job.status === 'created' ? job.id : ''];
  }

  /** As if so much time had passed. */
  async function pass(jobId: string, seconds: number): Promise<void> {
    await sql`update broker.job set started_at = started_at - ${seconds} * interval '1 second'
      where id = ${jobId}::bigint`.execute(db);
  }

  test('begins with one event, and is not done because it may do no more yet', async () => {
    const [topicId, jobId] = await aRatedJob(3, 1);
    const piece = (): ReturnType<typeof redrive> =>
      redrive(db, topicId, term, { jobId, limit: 100 });
    expect(await piece()).toMatchObject({ redriven: 1, finished: false });
    expect(await piece()).toEqual({ redriven: 0, finished: false, woken: null });
    expect(await findJob(db, jobId)).toMatchObject({ state: 'running', done: 1 });
    expect((await unfinishedRedrives(db)).map((job) => job.id)).toContain(jobId);
    await pass(jobId, 1);
    expect(await piece()).toMatchObject({ redriven: 1, finished: false });
    await pass(jobId, 1);
    expect(await piece()).toMatchObject({ redriven: 1, finished: true });
    expect(await findJob(db, jobId)).toMatchObject({ state: 'succeeded', done: 3 });
  });

  test('earns as much as the database’s clock has moved, in whatever pieces it is asked', async () => {
    const [topicId, jobId] = await aRatedJob(200, 10);
    await redrive(db, topicId, term, { jobId, limit: 100 });
    const began = performance.now();
    for (let tenths = 0; tenths < 50; tenths += 1) {
      await pass(jobId, 0.1);
      await redrive(db, topicId, term, { jobId, limit: 100 });
    }
    const { done } = (await findJob(db, jobId)) ?? { done: 0 };
    expect(done).toBeGreaterThanOrEqual(51);
    // the time that the test itself took counts too
    expect(done).toBeLessThanOrEqual(52 + Math.ceil((performance.now() - began) / 100));
  });

  test('makes up for a second at most, however long nobody was there', async () => {
    const [topicId, jobId] = await aRatedJob(60, 20);
    await redrive(db, topicId, term, { jobId, limit: 100 });
    await pass(jobId, 3600);
    expect(await redrive(db, topicId, term, { jobId, limit: 100 })).toMatchObject({
      redriven: 21,
      finished: false,
    });
  });

  test('goes on where the clock was set back', async () => {
    const [topicId, jobId] = await aRatedJob(60, 20);
    await redrive(db, topicId, term, { jobId, limit: 100 });
    await pass(jobId, 3600);
    await redrive(db, topicId, term, { jobId, limit: 100 });
    await pass(jobId, -3600);
    await redrive(db, topicId, term, { jobId, limit: 100 });
    await pass(jobId, 0.1);
    const { redriven } = await redrive(db, topicId, term, { jobId, limit: 100 });
    expect(redriven).toBeGreaterThanOrEqual(1);
  });
});

test('a job that cannot be done is ended with its reason', async () => {
  const { topicId, subscriptionId } = await withDeadLetters(1);
  const jobId = await aJob(topicId, subscriptionId);
  await db
    .updateTable('subscription')
    .set({ state: 'deleted' })
    .where('id', '=', subscriptionId)
    .execute();
  expect((await unfinishedRedrives(db)).find((job) => job.id === jobId)?.is_orphan).toBe(true);
  await failJob(db, jobId, 'the subscription was deleted');
  expect(await findJob(db, jobId)).toMatchObject({
    state: 'failed',
    error: 'the subscription was deleted',
  });
  expect(await redrive(db, topicId, term, { jobId, limit: 100 })).toMatchObject({
    redriven: 0,
    finished: true,
  });
});

test('regression: an entry of redriven events counted their data only, and a claim handed out more bytes than it had room for', async () => {
  const { topicId, subscriptionId } = await withDeadLetters(10, '1');
  await db
    .updateTable('dead_letter')
    .set({
      extensions: JSON.stringify({ note: 'x'.repeat(100_000) }),
      subject: 'y'.repeat(100_000),
    })
    .where('subscription_id', '=', subscriptionId)
    .execute();
  await redriveAll(topicId, await aJob(topicId, subscriptionId));
  const entries = await queueRows(db, subscriptionId);
  expect(entries.reduce((sum, entry) => sum + entry.bytes, 0)).toBeGreaterThan(2_000_000);
  for (const entry of entries) expect(entry.bytes).toBeLessThanOrEqual(1 << 20);
});
