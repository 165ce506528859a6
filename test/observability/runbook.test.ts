/** What the runbook tells an operator to type into psql, typed into a real database. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { expect, test } from 'vitest';

import { problemCodes } from '../../apps/api/problem-codes.ts';
import { aSubscription, aTopic } from '#test/support/factory.ts';
import { openVerbDatabase } from '#test/support/verbs.ts';

const runbook = readFileSync(join(import.meta.dirname, '../../deploy/runbook.md'), 'utf8');

test('each statement of the runbook can be run, in the order in which it stands there', async () => {
  const blocks = [...runbook.matchAll(/^```sql\n([\s\S]*?)^```$/gm)].map(([, sql = '']) => sql);
  const statements = blocks.flatMap((block) => block.trim().split('\n'));
  expect(statements.length).toBeGreaterThan(30);
  await using database = await openVerbDatabase();
  const topicId = await aTopic(database.db, { name: 'orders' });
  await aSubscription(database.db, topicId, { name: 'billing' });
  await using resources = new AsyncDisposableStack();
  const psql = new pg.Client({ connectionString: database.url });
  resources.defer(async () => psql.end());
  await psql.connect();
  const failed: string[] = [];
  for (const statement of statements) {
    expect(statement).toMatch(/^select .*;$/);
    await psql
      .query(statement)
      .catch((error: unknown) => failed.push(`${String(error)}: ${statement}`));
  }
  expect(failed).toEqual([]);
});

test('the problems that it explains, and that alerts look for, exist', () => {
  const alerts = ['events', 'database'].map((file) =>
    readFileSync(join(import.meta.dirname, `../../deploy/prometheus/alerts/${file}.yml`), 'utf8'),
  );
  const asked = alerts.flatMap((text) =>
    [...text.matchAll(/code=~"([\w|]+)"/g)].flatMap(([, codes = '']) => codes.split('|')),
  );
  expect(asked.length).toBeGreaterThan(3);
  expect(asked.filter((code) => !(problemCodes as string[]).includes(code))).toEqual([]);
});
