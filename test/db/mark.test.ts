import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { idleMark } from '#db/mark.ts';
import { aSubscription, aTopic } from '../support/factory.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

test('an active subscription that nobody has changed lately gets a mark, by the clock of the database', async () => {
  const { db } = database;
  const id = await aSubscription(db, await aTopic(db));
  expect(await idleMark(db, id, 10_000)).toBeUndefined();
  await sql`update broker.subscription set updated_at = clock_timestamp() - interval '1 minute' where id = ${id}`.execute(
    db,
  );
  const mark = await idleMark(db, id, 10_000);
  const { rows } = await sql<{ age: number }>`
    select extract(epoch from clock_timestamp() - ${mark}::timestamptz)::float8 as age`.execute(db);
  expect(rows[0]?.age).toBeGreaterThanOrEqual(10);
  expect(rows[0]?.age).toBeLessThan(15);
  await db.updateTable('subscription').set({ state: 'paused' }).where('id', '=', id).execute();
  expect(await idleMark(db, id, 10_000)).toBeUndefined();
});
