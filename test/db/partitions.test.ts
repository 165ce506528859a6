import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createDatabase, type Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import {
  detachPartition,
  dropPartition,
  ensurePartitions,
  expiredPartitions,
  expireEntries,
  type ExpiredPartition,
} from '#db/partitions.ts';
import { aSubscription, aTerm, aTopic, publishMany } from '#test/support/factory.ts';
import { aPastPartition, publishInto } from '#test/support/past-partition.ts';
import { schedule } from '#test/support/schedule.ts';
import {
  claimSome,
  deadLetters,
  openVerbDatabase,
  queueRows,
  settleAll,
  type VerbDatabase,
} from '#test/support/verbs.ts';
import { eventually } from '../support/eventually.ts';

let database: VerbDatabase;
let db: Database;
let term: string;

beforeAll(async () => {
  database = await openVerbDatabase();
  db = database.db;
  term = await aTerm(db);
});
afterAll(async () => database[Symbol.asyncDispose]());

async function exists(table: string): Promise<boolean> {
  const { rows } = await sql<{ exists: boolean }>`
    select to_regclass(${`broker.${table}`}) is not null as exists`.execute(db);
  return rows[0]!.exists;
}

async function findExpired(name: string) {
  return (await expiredPartitions(db)).find((each) => each.event_partition === name);
}

describe('partitions', () => {
  test('are made ahead for a class, once, and by many at a time', async () => {
    const made = await Promise.all(
      [1, 1, 1, 1].map(async (retentionClass) => ensurePartitions(db, retentionClass)),
    );
    expect(made.toSorted((a, b) => a - b)).toEqual([0, 0, 0, 3]);
    const { rows } = await sql<{ covers: boolean; ahead: number }>`
      select bool_or(starts_at <= clock_timestamp() and ends_at > clock_timestamp()) as covers,
          count(*) filter (where starts_at > clock_timestamp())::int as ahead
        from broker.partition where retention_class = 1 and attached`.execute(db);
    expect(rows[0]).toEqual({ covers: true, ahead: 2 });
    expect(await expiredPartitions(db)).toEqual([]);
  });

  test('are made without waiting for somebody who reads events', async () => {
    await db.transaction().execute(async (reader) => {
      await sql`select count(*) from broker.event`.execute(reader);
      expect(await ensurePartitions(db, 2160)).toBe(3);
    });
  });
});

describe('a partition whose time is over', () => {
  test('goes with what still refers to it, by the policy of each subscription', async () => {
    const topicId = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
    const dropping = await aSubscription(db, topicId);
    const keeping = await aSubscription(db, topicId, { on_expiry: 'dead_letter' });
    const leased = await aSubscription(db, topicId);
    const gone = await aSubscription(db, topicId);
    const past = await aPastPartition(db, 200);
    const recent = await aPastPartition(db, 50);
    const subscriptionIds = [dropping, keeping, leased, gone];
    await publishInto(db, past, { topicId, subscriptionIds, events: 7 });
    await publishInto(db, recent, { topicId, subscriptionIds: [dropping], events: 3 });
    const late = await claimSome(db, topicId, leased, 7);
    await sql`update broker.subscription set state = 'deleted' where id = ${gone}`.execute(db);

    expect(await findExpired(recent.event_partition)).toBeUndefined();
    const partition = (await findExpired(past.event_partition))!;
    expect(partition).toMatchObject({ attached: true, detach_pending: false, retention_class: 1 });
    const old = String(BigInt(term) - 1n);
    await expect(expireEntries(db, old, partition, 100)).rejects.toSatisfy(
      (error) => faultOf(error) === 'term_over',
    );
    await expect(dropPartition(db, old, partition)).rejects.toSatisfy(
      (error) => faultOf(error) === 'term_over',
    );
    // one that is not empty is not dropped, whoever asks
    await detachPartition(db, partition);
    expect(await dropPartition(db, term, partition)).toBe(false);
    expect(await exists(past.event_partition)).toBe(true);

    const chunks = [];
    for (;;) {
      const chunk = await expireEntries(db, term, partition, 3);
      if (chunk.length === 0) break;
      chunks.push(...chunk);
    }
    expect(chunks.toSorted((a, b) => a.subscription_id - b.subscription_id)).toEqual([
      { topic_id: topicId, subscription_id: dropping, dropped: 7, dead: 0 },
      { topic_id: topicId, subscription_id: keeping, dropped: 0, dead: 7 },
      { topic_id: topicId, subscription_id: leased, dropped: 7, dead: 0 },
      { topic_id: topicId, subscription_id: gone, dropped: 0, dead: 0 },
    ]);
    expect(await dropPartition(db, term, partition)).toBe(true);
    expect(await exists(past.event_partition)).toBe(false);
    expect(await exists(past.attempt_partition)).toBe(false);
    expect(await exists(recent.event_partition)).toBe(true);
    expect(await queueRows(db, dropping)).toHaveLength(1);
    expect(new Set(await settleAll(db, topicId, late, { outcome: 'acked' }))).toEqual(
      new Set(['lease_lost']),
    );
  });

  test('leaves its events in the dead letters', async () => {
    const topicId = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
    const keeping = await aSubscription(db, topicId, { on_expiry: 'dead_letter' });
    const past = await aPastPartition(db, 300);
    await publishInto(db, past, { topicId, subscriptionIds: [keeping], events: 3 });
    const partition = (await findExpired(past.event_partition))!;
    while ((await expireEntries(db, term, partition, 100)).length > 0);
    await detachPartition(db, partition);
    // a second time is no error: a crash may have come between
    await detachPartition(db, partition);
    expect(await findExpired(past.event_partition)).toMatchObject({ attached: false });
    expect(await dropPartition(db, term, partition)).toBe(true);
    const letters = await deadLetters(db, keeping);
    expect(letters.map((letter) => letter.reason)).toEqual(['expired', 'expired', 'expired']);
    expect(letters.map((letter) => letter.data)).toContain('{"number" : 2}');
  });

  test('is detached later when a reader is in the way, and publishers do not wait meanwhile', async () => {
    const topicId = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
    const subscriptionId = await aSubscription(db, topicId);
    const past = await aPastPartition(db, 400);
    const partition = (await findExpired(past.event_partition))!;
    await using hasty = createDatabase({
      url: database.url,
      applicationName: 'broker-test-detach',
      poolMax: 1,
      statementTimeoutMs: 20_000,
    });
    await db.transaction().execute(async (reader) => {
      await sql`select count(*) from broker.event`.execute(reader);
      let isSettled = false;
      const detach = detachPartition(hasty.db, partition)
        .catch(faultOf)
        .finally(() => (isSettled = true));
      await eventually(async () => {
        const { rows } =
          await sql`select from pg_stat_activity where application_name = 'broker-test-detach'
          and datname = current_database() and wait_event_type = 'Lock'`.execute(db);
        expect(rows).toHaveLength(1);
      });
      expect(await publishMany(db, topicId, 5)).toHaveLength(5);
      expect(await claimSome(db, topicId, subscriptionId, 10)).toHaveLength(5);
      expect(isSettled).toBe(false);
      // what the statement timeout does
      await sql`select pg_cancel_backend(pid) from pg_stat_activity
        where application_name = 'broker-test-detach' and datname = current_database()`.execute(db);
      expect(await detach).toBe('statement_timeout');
      expect(await publishMany(db, topicId, 5)).toHaveLength(5);
    });
    expect(await findExpired(past.event_partition)).toMatchObject({ detach_pending: true });
    await detachPartition(db, partition);
    expect(await findExpired(past.event_partition)).toMatchObject({ attached: false });
    expect(await dropPartition(db, term, partition)).toBe(true);
  });

  test('regression: what a nack put back while it was detached was counted as dead, and no dead letter was written', async () => {
    const topicId = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
    const keeping = await aSubscription(db, topicId, { on_expiry: 'dead_letter' });
    const past = await aPastPartition(db, 500);
    await publishInto(db, past, { topicId, subscriptionIds: [keeping], events: 3 });
    const partition = (await findExpired(past.event_partition))!;
    await detachPartition(db, partition);
    expect(await dropPartition(db, term, partition)).toBe(false);
    expect(await expireEntries(db, term, partition, 100)).toMatchObject([{ dropped: 0, dead: 3 }]);
    expect(await dropPartition(db, term, partition)).toBe(true);
    expect((await deadLetters(db, keeping)).map((letter) => letter.data)).toContain(
      '{"number" : 2}',
    );
  });

  test('regression: with a settle under way the expiry said that nothing was left, although it was put back', async () => {
    const topicId = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
    const keeping = await aSubscription(db, topicId, { on_expiry: 'dead_letter' });
    const past = await aPastPartition(db, 600);
    await publishInto(db, past, { topicId, subscriptionIds: [keeping], events: 3 });
    const partition = (await findExpired(past.event_partition))!;
    const events = await claimSome(db, topicId, keeping, 3);
    const { second, waited } = await schedule(
      database,
      (trx) => settleAll(trx, topicId, events, { outcome: 'nacked', delayMs: 0 }),
      (other) => expireEntries(other, term, partition, 100),
    );
    expect(waited).toBe(true);
    expect(second).toMatchObject([{ dropped: 0, dead: 3 }]);
    expect(await deadLetters(db, keeping)).toHaveLength(3);
  });

  test('regression: one call expired a chunk of every topic, and with many of them never came to an end', async () => {
    const past = await aPastPartition(db, 700);
    for (let i = 0; i < 3; i++) {
      const topicId = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
      const subscriptionIds = [await aSubscription(db, topicId), await aSubscription(db, topicId)];
      await publishInto(db, past, { topicId, subscriptionIds, events: 1 });
    }
    const partition = (await findExpired(past.event_partition))!;
    const dropped: number[] = [];
    for (;;) {
      const chunk = await expireEntries(db, term, partition, 3);
      if (chunk.length === 0) break;
      dropped.push(chunk.reduce((sum, each) => sum + each.dropped, 0));
    }
    expect(dropped).toEqual([2, 2, 2]);
  });
});

test('regression: a partition that was detached while the clock was ahead stood in the way of publishes when it was set back', async () => {
  const topicId = await aTopic(db);
  const { rows } = await sql<ExpiredPartition>`
    select * from broker.partition where retention_class = 168
       and starts_at <= clock_timestamp() and ends_at > clock_timestamp()`.execute(db);
  await publishMany(db, topicId, 1);
  await detachPartition(db, rows[0]!);
  await publishMany(db, topicId, 1);
  const { rows: events } = await sql`select from broker.event where topic_id = ${topicId}`.execute(
    db,
  );
  expect(events).toHaveLength(2);
});
