import { expect, test } from 'vitest';
import { clockBefore } from '#db/clock.ts';
import { openVerbDatabase } from '#test/support/verbs.ts';

test("the clock is the database's, so many milliseconds ago, in UTC", async () => {
  await using database = await openVerbDatabase();
  const now = await clockBefore(database.db);
  const before = await clockBefore(database.db, 60_000);
  const after = await clockBefore(database.db);
  expect(now).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/);
  expect(Date.parse(before)).toBeGreaterThanOrEqual(Date.parse(now) - 60_000);
  expect(Date.parse(before)).toBeLessThanOrEqual(Date.parse(after) - 59_999);
});
