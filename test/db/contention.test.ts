// Goal: claims and settles of many connections never wait for one another and never share an event.
// Method: claimers and settlers over a backlog, while another connection samples pg_locks for anything that waits.
import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import {
  claimSome,
  openVerbDatabase,
  queueRows,
  settleAll,
  type VerbDatabase,
} from '../support/verbs.ts';

const backlog = process.env['LONG'] === '1' ? 1_000_000 : 100_000;

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

/** Samples until told to stop: how many backends waited for a tuple or for another transaction. */
async function countWaiters(
  db: Database,
  until: () => boolean,
): Promise<{ waits: number; samples: number }> {
  let waits = 0;
  let samples = 0;
  while (!until()) {
    const { rows } = await sql<{ n: number }>`select count(*)::int as n
      from pg_locks l join pg_stat_activity a on a.pid = l.pid and a.datname = current_database()
      where not l.granted and l.locktype in ('tuple', 'transactionid')`.execute(db);
    waits += rows[0]?.n ?? 0;
    samples += 1;
  }
  return { waits, samples };
}

test(
  `8 claimers over ${backlog} events: each leased exactly once, nobody ever waits`,
  { timeout: 300_000 },
  async () => {
    const { db } = database;
    const topic = await aTopic(db);
    const subscription = await aSubscription(db, topic);
    const ids = await publishMany(db, topic, backlog);
    const seen = new Map<string, number>();
    let running = 8;
    await using sampler = database.another();
    const sampling = countWaiters(sampler.db, () => running === 0);
    await Promise.all(
      Array.from({ length: 8 }, async (_, index) => {
        await using claimer = database.another();
        for (;;) {
          // odd rooms, so that entries are split all the time
          const events = await claimSome(claimer.db, topic, subscription, 250 + index * 31);
          if (events.length === 0) break;
          for (const event of events) seen.set(event.event_id, (seen.get(event.event_id) ?? 0) + 1);
        }
        running -= 1;
      }),
    );
    const { waits, samples } = await sampling;
    expect(seen.size).toBe(ids.length);
    expect([...seen.values()].every((count) => count === 1)).toBe(true);
    expect(samples).toBeGreaterThan(10);
    expect(waits).toBe(0);
  },
);

test('claim and ack by 4 connections at once: every event acked once, nothing is left', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, 20_000);
  const acked: string[] = [];
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      await using consumer = database.another();
      for (;;) {
        const events = await claimSome(consumer.db, topic, subscription, 130);
        if (events.length === 0) break;
        const results = await settleAll(consumer.db, topic, events, { outcome: 'acked' });
        expect(results.every((result) => result === 'acked')).toBe(true);
        acked.push(...events.map((event) => event.event_id));
      }
    }),
  );
  expect(acked).toHaveLength(20_000);
  expect(new Set(acked).size).toBe(20_000);
  expect(await queueRows(db, subscription)).toEqual([]);
});
