// Goal: whatever two verbs do to the same rows at the same moment, the outcome is one that the state table allows.
// Method: one verb stays open in a transaction while the other runs, in both orders; asserted are the results and who waits.
import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { claim, type ClaimedEvent } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { extend } from '#db/extend.ts';
import { publishBatch } from '#db/publish.ts';
import { reap } from '#db/reap.ts';
import { takeOver } from '#db/take-over.ts';
import { aSubscription, aTerm, aTopic, aWorker, anEvent, publishMany } from '../support/factory.ts';
import { schedule } from '../support/schedule.ts';
import {
  claimSome,
  expireLeases,
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

async function setUp(events = 10) {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, events);
  return { db, topic, subscription };
}

async function leased(events = 10) {
  const { db, topic, subscription } = await setUp(events);
  const claimed = await claimSome(db, topic, subscription, 100);
  return {
    db,
    topic,
    subscription,
    claimed,
    leases: claimed.map((event) => ({ ...event, topic_id: topic })),
  };
}

const ack = (topic: number, events: readonly ClaimedEvent[]) => (db: Database) =>
  settleAll(db, topic, events, { outcome: 'acked' });
const nack = (topic: number, events: readonly ClaimedEvent[]) => (db: Database) =>
  settleAll(db, topic, events, { outcome: 'nacked', delayMs: 0 });
const all = <T>(count: number, value: T): T[] => Array.from({ length: count }, () => value);

describe('claim x claim', () => {
  test('the second takes what the first left, and never waits', async () => {
    const { topic, subscription } = await setUp(10);
    await publishMany(database.db, topic, 10);
    const claimer = (db: Database) => claimSome(db, topic, subscription, 4);
    const { first, second, waited } = await schedule(database, claimer, claimer);
    expect(waited).toBe(false);
    expect(first).toHaveLength(4);
    expect(second).toHaveLength(4);
    expect(new Set([...first, ...second].map((event) => event.event_id)).size).toBe(8);
  });

  test('what a claim that is rolled back had taken can be claimed again, split and all', async () => {
    const { db, topic, subscription } = await setUp(10);
    const claimer = (trx: Database) => claimSome(trx, topic, subscription, 4);
    const { second, waited } = await schedule(database, claimer, claimer, 'rollback');
    expect([second.length, waited]).toEqual([0, false]);
    expect(await claimSome(db, topic, subscription, 100)).toHaveLength(10);
  });
});

describe('claim x settle', () => {
  test.each(['claim first', 'settle first'])(
    '%s: a nacked event is claimed after the commit of its nack, not before',
    async (order) => {
      const { db, topic, subscription, claimed } = await leased(10);
      const claimer = (trx: Database) => claimSome(trx, topic, subscription, 100);
      const result =
        order === 'claim first'
          ? await schedule(database, claimer, nack(topic, claimed))
          : await schedule(database, nack(topic, claimed), claimer);
      expect(result.waited).toBe(false);
      expect((await claimSome(db, topic, subscription, 100)).length).toBe(10);
    },
  );
});

describe('settle x settle', () => {
  test('two acks of the same events: the second waits, and both succeed, since the second repeats the first', async () => {
    const { db, topic, subscription, claimed } = await leased(10);
    const { first, second, waited } = await schedule(
      database,
      ack(topic, claimed),
      ack(topic, claimed),
    );
    expect(waited).toBe(true);
    expect([...first, ...second]).toEqual(all(20, 'acked'));
    expect(await queueRows(db, subscription)).toEqual([]);
  });

  test.each([
    ['ack', 'nack'],
    ['nack', 'ack'],
  ])('%s then %s: the first one counts, the second has lost its lease', async (one) => {
    const { db, topic, subscription, claimed } = await leased(10);
    const [winner, loser] = one === 'ack' ? [ack, nack] : [nack, ack];
    const { first, second, waited } = await schedule(
      database,
      winner(topic, claimed),
      loser(topic, claimed),
    );
    expect(waited).toBe(true);
    expect(first).toEqual(all(10, one === 'ack' ? 'acked' : 'nacked'));
    expect(second).toEqual(all(10, 'lease_lost'));
    expect((await queueRows(db, subscription)).length).toBe(one === 'ack' ? 0 : 1);
  });

  test('two acks of different events of one entry both count', async () => {
    const { db, topic, subscription, claimed } = await leased(10);
    const { first, second, waited } = await schedule(
      database,
      ack(topic, claimed.slice(0, 5)),
      ack(topic, claimed.slice(5)),
    );
    expect(waited).toBe(true);
    expect([...first, ...second]).toEqual(all(10, 'acked'));
    expect(await queueRows(db, subscription)).toEqual([]);
  });

  test('a settle that is rolled back leaves everything to the next', async () => {
    const { topic, claimed } = await leased(10);
    const { second } = await schedule(
      database,
      nack(topic, claimed),
      ack(topic, claimed),
      'rollback',
    );
    expect(second).toEqual(all(10, 'acked'));
  });
});

describe('settle x reap', () => {
  test('settle first: the reap passes the row by, and the settle counts', async () => {
    const { db, topic, subscription, claimed } = await leased(10);
    await expireLeases(db, subscription);
    const term = await aTerm(db);
    const { first, second, waited } = await schedule(database, ack(topic, claimed), (trx) =>
      reap(trx, topic, term, { limit: 10, since: '-infinity' }),
    );
    expect(waited).toBe(false);
    expect(first).toEqual(all(10, 'acked'));
    expect(second.expired_events).toBe(0);
    expect(await queueRows(db, subscription)).toEqual([]);
  });

  test('reap first: the settle waits, has lost its lease and changes nothing', async () => {
    const { db, topic, subscription, claimed } = await leased(10);
    await expireLeases(db, subscription);
    const term = await aTerm(db);
    const { first, second, waited } = await schedule(
      database,
      (trx) => reap(trx, topic, term, { limit: 10, since: '-infinity' }),
      ack(topic, claimed),
    );
    expect(waited).toBe(true);
    expect(first.expired_events).toBe(10);
    expect(second).toEqual(all(10, 'lease_lost'));
    expect((await queueRows(db, subscription)).map((row) => row.event_count)).toEqual([10]);
  });
});

describe('extend x reap', () => {
  test('extend first: the reap passes the row by, and the new deadline holds', async () => {
    const { db, topic, subscription, leases } = await leased(2);
    await expireLeases(db, subscription);
    const term = await aTerm(db);
    const { first, second, waited } = await schedule(
      database,
      (trx) => extend(trx, topic, subscription, { leases: leases, leaseMs: 60_000 }),
      (trx) => reap(trx, topic, term, { limit: 10, since: '-infinity' }),
    );
    expect([waited, second.expired_events]).toEqual([false, 0]);
    expect((await queueRows(db, subscription))[0]?.lease_expires_at).toBe(first[0]);
  });

  test('reap first: the extend waits and says that the lease is lost', async () => {
    const { db, topic, subscription, leases } = await leased(2);
    await expireLeases(db, subscription);
    const term = await aTerm(db);
    const { second, waited } = await schedule(
      database,
      (trx) => reap(trx, topic, term, { limit: 10, since: '-infinity' }),
      (trx) => extend(trx, topic, subscription, { leases: leases, leaseMs: 60_000 }),
    );
    expect([waited, second]).toEqual([true, [null, null]]);
  });
});

describe('publish x delete subscription', () => {
  const remove = (subscription: number) => (db: Database) =>
    db
      .updateTable('subscription')
      .set({ state: 'deleted' })
      .where('id', '=', subscription)
      .execute();
  const publish = (topic: number) => (db: Database) =>
    publishBatch(db, topic, [{ events: [anEvent()] }]);

  test('publish first: it never waits, and what it wrote for the deleted one is handed to nobody', async () => {
    const { db, topic, subscription } = await setUp(0);
    const { waited } = await schedule(database, publish(topic), remove(subscription));
    expect(waited).toBe(false);
    expect(await queueRows(db, subscription)).toHaveLength(1);
    expect(await claimSome(db, topic, subscription, 10)).toEqual([]);
  });

  test('delete first: the publish does not wait for it, and after its commit writes nothing more for it', async () => {
    const { db, topic, subscription } = await setUp(0);
    const { waited } = await schedule(database, remove(subscription), publish(topic));
    expect(waited).toBe(false);
    await publish(topic)(db);
    expect(await queueRows(db, subscription)).toHaveLength(1);
  });
});

describe('duty x new term', () => {
  test('a duty that runs makes the new term wait', async () => {
    const { db, topic, subscription } = await leased(2);
    await expireLeases(db, subscription);
    const term = await aTerm(db);
    const { first, second, waited } = await schedule(
      database,
      (trx) => reap(trx, topic, term, { limit: 10, since: '-infinity' }),
      aTerm,
    );
    expect(waited).toBe(true);
    expect(first.expired_events).toBe(2);
    expect(BigInt(second)).toBe(BigInt(term) + 1n);
  });

  test('a new term that is not committed yet makes the old duty wait, and then refuses it', async () => {
    const { db, topic, subscription } = await leased(2);
    await expireLeases(db, subscription);
    const term = await aTerm(db);
    const { second, waited } = await schedule(database, aTerm, (trx) =>
      reap(trx, topic, term, { limit: 10, since: '-infinity' }).catch(faultOf),
    );
    expect([waited, second]).toEqual([true, 'term_over']);
    const { rows } = await sql<{ n: number }>`select count(*)::int as n from broker.queue
      where subscription_id = ${subscription} and lease_expires_at is not null`.execute(db);
    expect(rows[0]?.n).toBe(1);
  });
});

test('publish x publish of one key: the second waits, gives up by its lock timeout and is told so', async () => {
  const { topic } = await setUp(0);
  const key = { key: Buffer.alloc(16, 1), fingerprint: Buffer.alloc(16, 2) };
  const publish = (db: Database) => publishBatch(db, topic, [{ events: [anEvent()], ...key }]);
  await using holder = database.another();
  const trx = await holder.db.startTransaction().execute();
  await publish(trx);
  expect(await publish(database.db).catch(faultOf)).toBe('lock_timeout');
  await trx.commit().execute();
  expect(await publish(database.db)).toMatchObject({ results: [[{ outcome: 'duplicate' }]] });
});

describe('take-over x settle', () => {
  const goneWith = async () => {
    const { db, topic, subscription } = await setUp(10);
    const worker = await aWorker(db);
    const room = { subscription_id: subscription, events: 100, bytes: 1 << 20 };
    const claimed = await claim(db, topic, [room], { leaseMs: 360_000, leasedBy: worker });
    const term = await aTerm(db);
    const taker = (trx: Database) => takeOver(trx, topic, term, { worker, limit: 100 });
    return { db, topic, subscription, claimed, taker };
  };

  test('settle first: the take-over passes by what is being settled, and never waits', async () => {
    const { topic, claimed, taker, db, subscription } = await goneWith();
    const { first, second, waited } = await schedule(database, ack(topic, claimed), taker);
    expect(first).toEqual(all(10, 'acked'));
    expect([second.expired_events, waited]).toEqual([0, false]);
    expect(await queueRows(db, subscription)).toEqual([]);
  });

  test('take-over first: the settle waits for it, and has lost its leases', async () => {
    const { topic, claimed, taker, db, subscription } = await goneWith();
    const { first, second, waited } = await schedule(database, taker, ack(topic, claimed));
    expect(first.expired_events).toBe(10);
    expect(second).toEqual(all(10, 'lease_lost'));
    expect(waited).toBe(true);
    expect(await queueRows(db, subscription)).toMatchObject([{ generation: 2, attempt: 1 }]);
  });

  test('two leaders of two terms: the older one is refused, and nothing is taken over twice', async () => {
    const { db, topic, subscription, taker } = await goneWith();
    await taker(db);
    await aTerm(db);
    expect(await taker(db).then(() => 'none', faultOf)).toBe('term_over');
    expect(await claimSome(db, topic, subscription, 100)).toHaveLength(10);
  });
});
