import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ClaimedEvent } from '#db/claim.ts';
import { settleTimed, type Settlement } from '#db/settle.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import { claimSome, openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

test('what is acked for the first time says how long after its publish, by the database’s clock', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, 5);
  const claimed = await claimSome(db, topic, subscription, 5);
  const ack = (event: ClaimedEvent): Settlement => ({
    lease: { ...event, topic_id: topic },
    outcome: 'acked',
  });
  const first = [
    ack(claimed[0]!),
    { ...ack(claimed[1]!), outcome: 'nacked' as const },
    ack(claimed[2]!),
  ];
  const { results, acked } = await settleTimed(db, topic, subscription, first);
  expect(results).toEqual(['acked', 'nacked', 'acked']);
  const [now] = (
    await sql<{ seconds: number }>`
      select extract(epoch from clock_timestamp() - ${claimed[0]!.published_at}::timestamptz)::float8 as seconds`.execute(
      db,
    )
  ).rows;
  expect(acked).toEqual([{ events: 2, seconds: expect.any(Number) as number, position: 0 }]);
  expect(acked[0]!.seconds).toBeGreaterThan(0);
  expect(acked[0]!.seconds).toBeLessThanOrEqual(now!.seconds + 0.001);
  // a repetition succeeds, and is no other ack
  const again = await settleTimed(db, topic, subscription, [ack(claimed[0]!), ack(claimed[3]!)]);
  expect(again.results).toEqual(['acked', 'acked']);
  expect(again.acked).toMatchObject([{ events: 1 }]);
});
