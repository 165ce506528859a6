import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { purgeDeleted, purgeIdempotencyKeys } from '#db/purge.ts';
import { aSubscription, aTerm, anEvent, aTopic, publishMany } from '#test/support/factory.ts';
import { publishBatch } from '#db/publish.ts';
import { reap } from '#db/reap.ts';
import {
  claimSome,
  deadLetters,
  expireLeases,
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

async function purgedAt(subscriptionId: number): Promise<string | null> {
  const { purged_at } = await db
    .selectFrom('subscription')
    .select('purged_at')
    .where('id', '=', subscriptionId)
    .executeTakeFirstOrThrow();
  return purged_at;
}

test('what a deleted subscription left goes in chunks, leased events with their lease, and it counts as purged after 30 s', async () => {
  const topicId = await aTopic(db);
  const gone = await aSubscription(db, topicId);
  const kept = await aSubscription(db, topicId);
  await publishMany(db, topicId, 1000);
  const dead = await claimSome(db, topicId, gone, 100);
  await settleAll(db, topicId, dead, { outcome: 'rejected' });
  await claimSome(db, topicId, gone, 100);
  await sql`update broker.subscription set state = 'deleted', deleted_at = clock_timestamp() where id = ${gone}`.execute(
    db,
  );

  expect(await purgeDeleted(db, term, 5)).toBe(10);
  while ((await purgeDeleted(db, term, 50)) > 0);
  expect(await deadLetters(db, gone)).toEqual([]);
  const leased = await queueRows(db, gone);
  expect(leased.map((row) => row.lease_expires_at !== null)).toEqual([true]);
  expect(await purgedAt(gone)).toBeNull();

  await expireLeases(db, gone);
  await reap(db, topicId, term, { limit: 100, since: '-infinity' });
  expect(await queueRows(db, gone)).toEqual([]);
  // a publish that began before the deletion may still commit
  expect(await purgeDeleted(db, term, 50)).toBe(0);
  expect(await purgedAt(gone)).toBeNull();
  await sql`update broker.subscription set deleted_at = clock_timestamp() - interval '31 seconds' where id = ${gone}`.execute(
    db,
  );
  expect(await purgeDeleted(db, term, 50)).toBe(0);
  expect(await purgedAt(gone)).not.toBeNull();
  expect(await queueRows(db, kept)).toHaveLength(10);
});

test('idempotency keys go when their time is over, a chunk a call', async () => {
  const topicId = await aTopic(db);
  const keyed = Array.from({ length: 20 }, (_, index) =>
    anEvent({ key: Buffer.from([index]), fingerprint: Buffer.from('f') }),
  );
  await publishBatch(db, topicId, [{ events: keyed }]);
  expect(await purgeIdempotencyKeys(db, term, 100)).toBe(0);
  await sql`update broker.idempotency_key set expires_at = clock_timestamp()
    where topic_id = ${topicId} and key < '\\x0a'`.execute(db);
  expect(await purgeIdempotencyKeys(db, term, 6)).toBe(6);
  expect(await purgeIdempotencyKeys(db, term, 6)).toBe(4);
  expect(await purgeIdempotencyKeys(db, term, 6)).toBe(0);
  const left = await db
    .selectFrom('idempotency_key')
    .select('key')
    .where('topic_id', '=', topicId)
    .execute();
  expect(left).toHaveLength(10);
});

test('nothing is purged for an old term', async () => {
  const old = String(BigInt(term) - 1n);
  for (const purge of [purgeDeleted, purgeIdempotencyKeys]) {
    await expect(purge(db, old, 100)).rejects.toSatisfy((error) => faultOf(error) === 'term_over');
  }
});

test('regression: a call purged a chunk of each subscription and topic, and with many of them never came to an end', async () => {
  const topics = await Promise.all([1, 2, 3].map(async () => aTopic(db)));
  for (const topicId of topics) {
    const gone = await aSubscription(db, topicId);
    const keyed = Array.from({ length: 20 }, (_, index) =>
      anEvent({ key: Buffer.from([index]), fingerprint: Buffer.from('f') }),
    );
    await publishBatch(db, topicId, [{ events: keyed }]);
    for (let i = 0; i < 10; i++) await publishMany(db, topicId, 1);
    await sql`update broker.subscription set state = 'deleted', deleted_at = clock_timestamp() where id = ${gone}`.execute(
      db,
    );
  }
  await sql`update broker.idempotency_key set expires_at = clock_timestamp()`.execute(db);
  expect(await purgeIdempotencyKeys(db, term, 10)).toBeLessThan(20);
  expect(await purgeDeleted(db, term, 5)).toBeLessThan(10);
  let purged = 0;
  for (let n = 1; n > 0; purged += n) n = await purgeIdempotencyKeys(db, term, 10);
  expect(purged).toBeGreaterThanOrEqual(50);
  while ((await purgeDeleted(db, term, 5)) > 0);
  const left = await db.selectFrom('queue').select('id').where('topic_id', 'in', topics).execute();
  expect(left).toEqual([]);
});
