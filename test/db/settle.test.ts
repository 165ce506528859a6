import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { claim, type ClaimedEvent } from '#db/claim.ts';
import { settle, type Settlement } from '#db/settle.ts';
import {
  aSubscription,
  aTopic,
  aWorker,
  publishMany,
  type SubscriptionOverrides,
} from '../support/factory.ts';
import {
  claimSome,
  deadLetters,
  expireLeases,
  makeDue,
  openVerbDatabase,
  queueRows,
  settleAll,
  type VerbDatabase,
} from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

async function leased(events: number, overrides: SubscriptionOverrides = {}) {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic, overrides);
  const ids = await publishMany(db, topic, events);
  return { db, topic, subscription, ids, claimed: await claimSome(db, topic, subscription, 1000) };
}

async function attempts(topic: number) {
  const { rows } = await sql<{
    outcome: string;
    ordinals: number[];
    attempt: number;
    error: string | null;
  }>`
    select outcome, ordinals, attempt, error from broker.attempt where topic_id = ${topic} order by settled_at, first_ordinal`.execute(
    database.db,
  );
  return rows;
}

const of = (topic: number, event: ClaimedEvent, rest: Omit<Settlement, 'lease'>): Settlement => ({
  lease: { ...event, topic_id: topic },
  ...rest,
});

test('an entry of 100 of which 93 are acked and 7 nacked with two delays: 93 gone, two new rows, attempt 2 next', async () => {
  const { db, topic, subscription, claimed } = await leased(100);
  const results = await settle(
    db,
    topic,
    subscription,
    claimed.map((event, i) =>
      of(
        topic,
        event,
        i < 93
          ? { outcome: 'acked' }
          : { outcome: 'nacked', delayMs: i < 96 ? 5000 : 60_000, error: 'no' },
      ),
    ),
  );
  expect(results.filter((result) => result === 'acked')).toHaveLength(93);
  expect(results.filter((result) => result === 'nacked')).toHaveLength(7);
  const rows = await queueRows(db, subscription);
  expect(rows.map((row) => row.ordinals).toSorted((a, b) => a.length - b.length)).toEqual([
    [93, 94, 95],
    [96, 97, 98, 99],
  ]);
  expect(
    rows.every((row) => row.lease_expires_at === null && row.attempt === 1 && row.generation === 0),
  ).toBe(true);
  expect(rows.map((row) => Math.round(row.due_in / 10) * 10).toSorted((a, b) => a - b)).toEqual([
    expect.any(Number),
    60,
  ]);
  await makeDue(db, subscription);
  const again = await claimSome(db, topic, subscription, 100);
  expect(again.map((event) => event.attempt)).toEqual(Array.from({ length: 7 }, () => 2));
  expect(await attempts(topic)).toHaveLength(3);
});

test('acks of parts leave the rest leased; the row goes with its last event', async () => {
  const { db, topic, subscription, claimed } = await leased(3);
  expect(await settleAll(db, topic, claimed.slice(0, 1), { outcome: 'acked' })).toEqual(['acked']);
  expect(
    (await queueRows(db, subscription)).map((row) => [row.ordinals, row.lease_expires_at !== null]),
  ).toEqual([[[1, 2], true]]);
  expect(await settleAll(db, topic, claimed.slice(1), { outcome: 'acked' })).toEqual([
    'acked',
    'acked',
  ]);
  expect(await queueRows(db, subscription)).toEqual([]);
});

test('a repeated ack succeeds, in one call and in a later one; a nack after an ack has lost', async () => {
  const { db, topic, subscription, claimed } = await leased(2);
  const [first, second] = claimed as [ClaimedEvent, ClaimedEvent];
  const ack = of(topic, first, { outcome: 'acked' });
  expect(
    await settle(db, topic, subscription, [ack, ack, of(topic, first, { outcome: 'nacked' })]),
  ).toEqual(['acked', 'acked', 'lease_lost']);
  expect(
    await settle(db, topic, subscription, [ack, of(topic, second, { outcome: 'acked' })]),
  ).toEqual(['acked', 'acked']);
  expect(
    await settle(db, topic, subscription, [ack, of(topic, first, { outcome: 'nacked' })]),
  ).toEqual(['acked', 'lease_lost']);
});

test('an ack of an older generation changes nothing and says so', async () => {
  const { db, topic, subscription, claimed } = await leased(2);
  await expireLeases(db, subscription);
  await sql`update broker.queue set lease_expires_at = null, generation = generation + 1 where subscription_id = ${subscription}`.execute(
    db,
  );
  const again = await claimSome(db, topic, subscription, 10);
  expect(await settleAll(db, topic, claimed, { outcome: 'acked' })).toEqual([
    'lease_lost',
    'lease_lost',
  ]);
  expect(await queueRows(db, subscription)).toHaveLength(1);
  expect(await settleAll(db, topic, again, { outcome: 'acked' })).toEqual(['acked', 'acked']);
  // and what the newer generation acked is no success of the older one
  expect(await settleAll(db, topic, claimed, { outcome: 'acked' })).toEqual([
    'lease_lost',
    'lease_lost',
  ]);
});

test('an ack that comes late, but before anybody took the lease back, is accepted', async () => {
  const { db, topic, subscription, claimed } = await leased(1);
  await expireLeases(db, subscription);
  expect(await settleAll(db, topic, claimed, { outcome: 'acked' })).toEqual(['acked']);
});

test('released events wait again at once with their attempt back', async () => {
  const { db, topic, subscription, claimed } = await leased(4);
  expect(await settleAll(db, topic, claimed.slice(0, 2), { outcome: 'released' })).toEqual([
    'released',
    'released',
  ]);
  const [leasedRow, waiting] = await queueRows(db, subscription);
  expect(leasedRow?.ordinals).toEqual([2, 3]);
  expect([waiting?.ordinals, waiting?.attempt, waiting?.generation]).toEqual([[0, 1], 0, 0]);
  expect((await claimSome(db, topic, subscription, 10)).map((event) => event.attempt)).toEqual([
    1, 1,
  ]);
});

test('a nack without a delay backs off with full jitter, drawn once per row, growing by attempt up to the maximum', async () => {
  const policy = { minimum_backoff_ms: 1000, maximum_backoff_ms: 4000, backoff_multiplier: 2 };
  const { db, topic, subscription, claimed } = await leased(20, policy);
  await settleAll(db, topic, claimed, { outcome: 'nacked' });
  expect(await queueRows(db, subscription)).toHaveLength(1);
  for (const [attempt, bound] of [
    [1, 1],
    [2, 2],
    [3, 4],
    [9, 4],
  ] as const) {
    const dues: number[] = [];
    for (let i = 0; i < 20; i++) {
      await sql`update broker.queue set available_at = clock_timestamp(), attempt = ${attempt - 1} where subscription_id = ${subscription}`.execute(
        db,
      );
      await settleAll(db, topic, await claimSome(db, topic, subscription, 100), {
        outcome: 'nacked',
      });
      dues.push((await queueRows(db, subscription))[0]?.due_in ?? 0);
    }
    expect(Math.max(...dues)).toBeLessThanOrEqual(bound);
    expect(Math.max(...dues) - Math.min(...dues)).toBeGreaterThan(bound / 4);
  }
});

test('the last nack makes a dead letter with a copy of the event; attempts never pass the maximum', async () => {
  const { db, topic, subscription, ids, claimed } = await leased(2, {
    max_attempts: 2,
    maximum_backoff_ms: 0,
    minimum_backoff_ms: 0,
  });
  expect(await settleAll(db, topic, claimed, { outcome: 'nacked', error: 'first' })).toEqual([
    'nacked',
    'nacked',
  ]);
  const again = await claimSome(db, topic, subscription, 10);
  expect(await settleAll(db, topic, again, { outcome: 'nacked', error: 'second' })).toEqual([
    'dead',
    'dead',
  ]);
  expect(await queueRows(db, subscription)).toEqual([]);
  const letters = await deadLetters(db, subscription);
  expect(letters.map((letter) => letter.event_id)).toEqual(ids);
  expect(letters[0]).toMatchObject({
    reason: 'max_attempts',
    attempts: 2,
    last_error: 'second',
    data: again[0]?.data,
  });
});

test('a rejected event is a dead letter at once', async () => {
  const { db, topic, subscription, claimed } = await leased(2);
  expect(
    await settleAll(db, topic, claimed.slice(0, 1), { outcome: 'rejected', error: 'bad' }),
  ).toEqual(['dead']);
  expect(await deadLetters(db, subscription)).toMatchObject([
    { reason: 'rejected', attempts: 1, last_error: 'bad' },
  ]);
  expect((await queueRows(db, subscription)).map((row) => row.ordinals)).toEqual([[1]]);
});

test('a nack clears isolation, a release keeps it', async () => {
  const { db, topic, subscription } = await leased(0);
  await publishMany(db, topic, 1);
  await sql`update broker.queue set isolated = true where subscription_id = ${subscription}`.execute(
    db,
  );
  await settleAll(db, topic, await claimSome(db, topic, subscription, 1), { outcome: 'released' });
  expect((await queueRows(db, subscription))[0]?.isolated).toBe(true);
  await settleAll(db, topic, await claimSome(db, topic, subscription, 1), {
    outcome: 'nacked',
    delayMs: 0,
  });
  expect((await queueRows(db, subscription))[0]?.isolated).toBe(false);
});

test('leases of a deleted subscription are lost', async () => {
  const { db, topic, subscription, claimed } = await leased(1);
  await db
    .updateTable('subscription')
    .set({ state: 'deleted' })
    .where('id', '=', subscription)
    .execute();
  expect(await settleAll(db, topic, claimed, { outcome: 'acked' })).toEqual(['lease_lost']);
});

test('leases of another subscription or topic are lost', async () => {
  const { db, topic, claimed } = await leased(1);
  const other = await aSubscription(db, topic);
  const first = claimed[0] as ClaimedEvent;
  expect(await settle(db, topic, other, [of(topic, first, { outcome: 'acked' })])).toEqual([
    'lease_lost',
  ]);
  expect(
    await settle(db, await aTopic(db), first.subscription_id, [
      of(topic, first, { outcome: 'acked' }),
    ]),
  ).toEqual(['lease_lost']);
});

test('an event named twice in one call of the function is refused, so that nothing can be both acked and nacked', async () => {
  const { db, topic, subscription, claimed } = await leased(1);
  const { publish_id, entry_id } = claimed[0] as ClaimedEvent;
  await expect(
    sql`select * from broker.settle(${topic}, ${subscription}, array[${publish_id}, ${publish_id}]::bigint[],
      array[${entry_id}, ${entry_id}]::bigint[], array[1, 1], array[168, 168]::smallint[], array['{0}', '{0}'],
      array['acked', 'nacked'], null, null, null, null, null)`.execute(db),
  ).rejects.toThrow(/settled twice/);
  expect(await queueRows(db, subscription)).toHaveLength(1);
});

test('two connections that ack random halves of the same entries settle each event exactly once', async () => {
  const { db, topic, subscription, claimed } = await leased(1000);
  await using other = database.another();
  const shuffled = claimed.toSorted(() => Math.random() - 0.5);
  const chunks = Array.from({ length: 40 }, (_, i) => shuffled.slice(i * 25, i * 25 + 25));
  const results = await Promise.all(
    chunks.flatMap((chunk, i) => [
      settleAll(i % 2 === 0 ? db : other.db, topic, chunk, { outcome: 'acked' }),
      settleAll(i % 2 === 0 ? other.db : db, topic, chunk.slice(0, 5), {
        outcome: 'nacked',
        delayMs: 0,
      }),
    ]),
  );
  expect(results.flat().filter((result) => result !== 'lease_lost')).toHaveLength(1000);
  const waiting = (await queueRows(db, subscription)).reduce(
    (sum, row) => sum + row.event_count,
    0,
  );
  const acked = results.flat().filter((result) => result === 'acked').length;
  expect(waiting + acked).toBe(1000);
});

describe('a receiver that asks for a delay', () => {
  test('gets it, and it costs no attempt', async () => {
    const { db, topic, subscription, claimed } = await leased(3, { max_attempts: 1 });
    const deferral = { outcome: 'deferred', delayMs: 90_000 } as const;
    expect(await settleAll(db, topic, claimed, deferral)).toEqual([
      'deferred',
      'deferred',
      'deferred',
    ]);
    const [row, ...others] = await queueRows(db, subscription);
    expect(others).toEqual([]);
    expect(row).toMatchObject({ attempt: 0, generation: 0, ordinals: [0, 1, 2] });
    expect(row!.due_in).toBeGreaterThan(80);
    expect(row!.due_in).toBeLessThanOrEqual(90);
    expect(await attempts(topic)).toMatchObject([{ outcome: 'deferred', attempt: 1 }]);
  });

  test('is kept to an hour', async () => {
    const { db, topic, subscription, claimed } = await leased(1);
    await settleAll(db, topic, claimed, { outcome: 'deferred', delayMs: 86_400_000 });
    const [row] = await queueRows(db, subscription);
    expect(row!.due_in).toBeGreaterThan(3500);
    expect(row!.due_in).toBeLessThanOrEqual(3600);
  });

  test('is counted as a nack from the tenth time in a row on, with the delay that it asked for', async () => {
    const { db, topic, subscription } = await leased(0, { max_attempts: 2 });
    await publishMany(db, topic, 1);
    const results: string[] = [];
    for (let i = 0; i < 11; i += 1) {
      await makeDue(db, subscription);
      const claimed = await claimSome(db, topic, subscription, 1);
      results.push(
        ...(await settleAll(db, topic, claimed, { outcome: 'deferred', delayMs: 30_000 })),
      );
      if (i === 9) expect((await queueRows(db, subscription))[0]!.due_in).toBeGreaterThan(20);
    }
    expect(results).toEqual([...Array.from({ length: 9 }, () => 'deferred'), 'nacked', 'dead']);
    expect(await deadLetters(db, subscription)).toMatchObject([
      { reason: 'max_attempts', attempts: 2 },
    ]);
  });
});

test('a push delivery is an attempt of its own: status, duration, answer, and who sent it', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic, { max_attempts: 1 });
  await publishMany(db, topic, 3);
  const worker = await aWorker(db);
  const claimed = await claim(
    db,
    topic,
    [{ subscription_id: subscription, events: 3, bytes: 1 << 20 }],
    { leaseMs: 60_000, leasedBy: worker },
  );
  const answers = [
    { status: 200, durationMs: 12, response: Buffer.from('ok') },
    { status: 500, durationMs: 13, response: Buffer.from([0xff, 0]) },
    { status: null, durationMs: 14, response: null },
  ];
  const outcomes = ['acked', 'nacked', 'nacked'] as const;
  const settlements = claimed.map((event, index) =>
    of(topic, event, { outcome: outcomes[index]!, answer: answers[index]!, error: `e${index}` }),
  );
  expect(await settle(db, topic, subscription, settlements)).toEqual(['acked', 'dead', 'dead']);
  const rows = await db
    .selectFrom('attempt')
    .select(['first_ordinal', 'outcome', 'status', 'duration_ms', 'response', 'worker'])
    .where('topic_id', '=', topic)
    .orderBy('first_ordinal')
    .execute();
  expect(rows).toEqual([
    {
      first_ordinal: 0,
      outcome: 'acked',
      status: 200,
      duration_ms: 12,
      response: Buffer.from('ok'),
      worker,
    },
    {
      first_ordinal: 1,
      outcome: 'dead',
      status: 500,
      duration_ms: 13,
      response: Buffer.from([0xff, 0]),
      worker,
    },
    { first_ordinal: 2, outcome: 'dead', status: null, duration_ms: 14, response: null, worker },
  ]);
  const dead = await db
    .selectFrom('dead_letter')
    .select(['last_status', 'last_error'])
    .where('subscription_id', '=', subscription)
    .orderBy('id')
    .execute();
  expect(dead).toEqual([
    { last_status: 500, last_error: 'e1' },
    { last_status: null, last_error: 'e2' },
  ]);
});
