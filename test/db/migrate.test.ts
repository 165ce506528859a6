import { sql } from 'kysely';
import { expect, test } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { knownMigrations, migrate } from '#db/migrate.ts';
import { cloneDatabase, query } from '../support/database.ts';

async function anEmptyDatabase() {
  const database = await cloneDatabase();
  await query(database.url, 'drop schema broker cascade');
  return database;
}

test('several runs at once on an empty database wait for each other and do the work once', async () => {
  await using database = await anEmptyDatabase();
  const lines: string[] = [];
  const run = () => migrate({ databaseUrl: database.url, onProgress: (line) => lines.push(line) });
  await Promise.all([run(), run(), run()]);
  expect(lines.filter((line) => line.startsWith('migrated'))).toEqual(
    (await knownMigrations()).map((name) => `migrated ${name}`),
  );
  expect(new Set(lines).size).toBe(lines.length);
});

test('a later run does nothing, but for a function or view that has changed', async () => {
  await using database = await cloneDatabase();
  const lines: string[] = [];
  const run = () => migrate({ databaseUrl: database.url, onProgress: (line) => lines.push(line) });
  await run();
  expect(lines).toEqual([]);
  await query(
    database.url,
    `update broker.definition set hash = 'old' where path = 'functions/claim.sql'`,
  );
  await run();
  expect(lines).toEqual(['defined functions/claim.sql']);
});

test('functions that return more than those of the release before take their place all at once, or not at all', async () => {
  await using database = await cloneDatabase();
  const run = () => migrate({ databaseUrl: database.url });
  const columns = async (): Promise<string> => {
    const [row] = await query<{ result: string }>(
      database.url,
      `select string_agg(pg_get_function_result(oid), ' | ') as result from pg_proc where proname = 'take_over'`,
    );
    return row?.result ?? '';
  };
  await query(
    database.url,
    `drop function broker.take_over(int, bigint, text, int);
     create function broker.take_over(int, bigint, text, int) returns table (expired_events int) language sql as 'select 0';
     update broker.definition set hash = 'old' where path in ('functions/take_over.sql', 'views/workers.sql');
     drop view broker.workers;
     create view broker.workers as select 1 as something_else`,
  );
  // the view is defined after the function, and cannot be
  await expect(run()).rejects.toThrow('cannot change name of view column');
  expect(await columns()).toBe('TABLE(expired_events integer)');
  await query(database.url, 'drop view broker.workers');
  await run();
  expect(await columns()).toContain('dead_counts integer[]');
});

test('a migration that fails says which, and leaves the lock free for the next run', async () => {
  await using database = await anEmptyDatabase();
  // in the way of the second one
  await query(database.url, 'create schema broker');
  await query(database.url, 'create sequence broker.publish_seq');
  await expect(migrate({ databaseUrl: database.url })).rejects.toThrow('0002_events');
  await query(database.url, 'drop sequence broker.publish_seq');
  await migrate({ databaseUrl: database.url });
  await using handle = createDatabase({
    url: database.url,
    applicationName: 'broker-test',
    poolMax: 1,
    statementTimeoutMs: 5000,
  });
  const { rows } = await sql<{
    n: number;
  }>`select count(*)::int as n from broker.kysely_migration`.execute(handle.db);
  expect(rows[0]?.n).toBe((await knownMigrations()).length);
});

test('an older release leaves a newer database as it is, functions and rights too, and says so', async () => {
  await using database = await cloneDatabase();
  await query(
    database.url,
    `insert into broker.kysely_migration (name, timestamp) values ('9999_next', 'now')`,
  );
  await query(
    database.url,
    `update broker.definition set hash = 'of the next release' where path = 'functions/claim.sql'`,
  );
  const lines: string[] = [];
  await migrate({ databaseUrl: database.url, onProgress: (line) => lines.push(line) });
  expect(lines).toEqual(['left as it is: the database is of a newer release (9999_next)']);
});
