import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { findEvent, isId, listDeliveries } from '#db/events.ts';
import { publishBatch } from '#db/publish.ts';
import { settle } from '#db/settle.ts';
import { anEvent, aSubscription, aTopic } from '../support/factory.ts';
import {
  claimSome,
  makeDue,
  openVerbDatabase,
  settleAll,
  type VerbDatabase,
} from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

async function publishOne(topicId: number, overrides: Parameters<typeof anEvent>[0] = {}) {
  const result = await publishBatch(database.db, topicId, [{ events: [anEvent(overrides)] }]);
  return result.status === 'published' ? (result.results[0]?.[0]?.id ?? '') : '';
}

test('an event is found by its id, whichever class of retention it is in', async () => {
  const topicId = await aTopic(database.db, { retention_seconds: 3600, retention_class: 1 });
  const data = '{"b": 1.0, "a": 12345678901234567890}';
  const short = await publishOne(topicId, { data });
  // a delay puts it into a longer class
  const long = await publishOne(topicId, { delay_ms: 10 * 86_400_000 });
  expect(await findEvent(database.db, topicId, short)).toMatchObject({
    event_id: short,
    retention_class: 1,
    data,
  });
  expect((await findEvent(database.db, topicId, long))?.retention_class).toBeGreaterThan(1);
  const another = await aTopic(database.db);
  expect(await findEvent(database.db, another, short)).toBeUndefined();
});

test.each(['', '-1', '01', '1e3', 'abc', '9223372036854775808'])('%j is no id', async (text) => {
  expect(isId(text)).toBe(false);
  expect(await findEvent(database.db, 1, text)).toBeUndefined();
});

test('deliveries are told by subscription, with their attempts', async () => {
  const topicId = await aTopic(database.db);
  const acked = await aSubscription(database.db, topicId, { name: 'a-acked' });
  const dead = await aSubscription(database.db, topicId, { name: 'b-dead', max_attempts: 2 });
  await aSubscription(database.db, topicId, { name: 'c-waiting' });
  await aSubscription(database.db, topicId, { name: 'd-deleted', state: 'deleted' });
  const id = await publishOne(topicId);
  for (const error of ['first', 'second']) {
    const events = await claimSome(database.db, topicId, dead, 1);
    await settleAll(database.db, topicId, events, { outcome: 'nacked', delayMs: 0, error });
  }
  await settleAll(database.db, topicId, await claimSome(database.db, topicId, acked, 1), {
    outcome: 'acked',
  });
  await aSubscription(database.db, topicId, { name: 'e-later' });
  expect(await listDeliveries(database.db, topicId, id)).toMatchObject([
    { subscription: 'a-acked', state: 'acked', attempts: 1, dead_letter_id: null },
    { subscription: 'b-dead', state: 'dead', attempts: 2, last_error: 'second' },
    { subscription: 'c-waiting', state: 'waiting', attempts: 0, last_attempt_at: null },
  ]);
});

describe('the history of a delivery', () => {
  test('has each attempt with its answer, oldest first, of this event and subscription alone', async () => {
    const topicId = await aTopic(database.db);
    const retried = await aSubscription(database.db, topicId, { name: 'a-retried' });
    await aSubscription(database.db, topicId, { name: 'b-idle' });
    const result = await publishBatch(database.db, topicId, [{ events: [anEvent(), anEvent()] }]);
    const [id = '', other = ''] =
      result.status === 'published' ? (result.results[0] ?? []).map((each) => each.id) : [];
    const answers = [
      { status: 500, durationMs: 12, response: Buffer.from([0x6f, 0x68, 0xff, 0]) },
      { status: null, durationMs: 15_000, response: null },
      { status: 200, durationMs: 3, response: Buffer.alloc(0) },
    ];
    for (const [index, answer] of answers.entries()) {
      const events = await claimSome(database.db, topicId, retried, 2);
      const settlements = events
        .filter(({ event_id }) => event_id === id)
        .map((event) => ({
          lease: { ...event, topic_id: topicId },
          outcome: index < 2 ? ('nacked' as const) : ('acked' as const),
          delayMs: 0,
          error: index < 2 ? `failure ${index}` : undefined,
          answer,
        }));
      await sql`update broker.queue set leased_by = 'worker-1' where subscription_id = ${retried} and generation > 0`.execute(
        database.db,
      );
      await settle(database.db, topicId, retried, settlements);
    }
    const deliveries = await listDeliveries(database.db, topicId, id);
    const at = expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/) as string;
    const common = { settled_at: at, worker: 'worker-1' };
    expect(deliveries).toMatchObject([
      { subscription: 'a-retried', state: 'acked', attempts: 3 },
      { subscription: 'b-idle', history: [] },
    ]);
    expect(deliveries?.[0]?.history).toEqual([
      {
        ...common,
        attempt: 1,
        outcome: 'nacked',
        error: 'failure 0',
        status: 500,
        duration_ms: 12,
        response: answers[0]?.response,
      },
      {
        ...common,
        attempt: 2,
        outcome: 'nacked',
        error: 'failure 1',
        status: null,
        duration_ms: 15_000,
        response: null,
      },
      {
        ...common,
        attempt: 3,
        outcome: 'acked',
        error: null,
        status: 200,
        duration_ms: 3,
        response: Buffer.alloc(0),
      },
    ]);
    expect((await listDeliveries(database.db, topicId, other))?.[0]?.history).toEqual([]);
  });

  test('has the last 100', async () => {
    const topicId = await aTopic(database.db);
    const patient = await aSubscription(database.db, topicId, { max_attempts: 1000 });
    const id = await publishOne(topicId);
    for (let attempt = 1; attempt <= 103; attempt += 1) {
      await makeDue(database.db, patient);
      await settleAll(database.db, topicId, await claimSome(database.db, topicId, patient, 1), {
        outcome: 'nacked',
      });
    }
    const [delivery] = (await listDeliveries(database.db, topicId, id)) ?? [];
    expect(delivery?.attempts).toBe(103);
    expect(delivery?.history.map(({ attempt }) => attempt)).toEqual(
      Array.from({ length: 100 }, (_, n) => n + 4),
    );
  });

  test('is found along the primary key of the attempts', async () => {
    const topicId = await aTopic(database.db);
    const subscriptionId = await aSubscription(database.db, topicId);
    const id = await publishOne(topicId);
    await sql`insert into broker.attempt (topic_id, subscription_id, publish_id, entry_id, generation, attempt, retention_class,
        first_ordinal, ordinals, outcome, settled_at)
      select ${topicId}, ${subscriptionId}, (${id}::bigint >> 10) - n + 1, n, 1, 1, 168, 0, '{0}', 'acked', clock_timestamp()
        from generate_series(1, 20000) n`.execute(database.db);
    await sql`analyze broker.attempt`.execute(database.db);
    await using reader = database.another(1);
    const before = await readsOf(reader.db);
    expect(await listDeliveries(reader.db, topicId, id)).toHaveLength(1);
    const after = await readsOf(reader.db);
    expect(after.seq_scan - before.seq_scan).toBe(0);
    expect(after.idx_scan - before.idx_scan).toBeGreaterThan(0);
    // one attempt, once for the state and once for the history
    expect(after.idx_tup_fetch - before.idx_tup_fetch).toBeLessThanOrEqual(2);
  });
});

/** What has been read of the attempts' partitions so far; over one connection, which counts for itself. */
async function readsOf(db: Database) {
  await sql`select pg_stat_force_next_flush()`.execute(db);
  const { rows } = await sql<{ seq_scan: number; idx_scan: number; idx_tup_fetch: number }>`
    select sum(seq_scan)::int as seq_scan, sum(idx_scan)::int as idx_scan, sum(idx_tup_fetch)::int as idx_tup_fetch
      from pg_stat_user_tables where relname ~ '^attempt_\\d'`.execute(db);
  return rows[0] ?? { seq_scan: 0, idx_scan: 0, idx_tup_fetch: 0 };
}
