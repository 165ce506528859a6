import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { faultOf, isTransient } from '#db/errors.ts';
import { query } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

const options = { applicationName: 'broker-test', poolMax: 1, statementTimeoutMs: 1000 };

test('int8 and json come as text, timestamps as RFC 3339 in UTC with microseconds', async () => {
  const { rows } = await sql<
    Record<string, unknown>
  >`select 9007199254740993::int8 as big, '{"a": 1.0}'::json as json,
    '2026-01-02 03:04:05.123456+02'::timestamptz as at, array[9007199254740993]::int8[] as bigs`.execute(
    database.db,
  );
  expect(rows[0]).toEqual({
    big: '9007199254740993',
    json: '{"a": 1.0}',
    at: '2026-01-02T01:04:05.123456Z',
    bigs: ['9007199254740993'],
  });
});

test('a database that is not there is `unavailable`: nothing was sent', async () => {
  await using handle = createDatabase({ ...options, url: 'postgres://nobody@127.0.0.1:1/none' });
  const error = await sql`select 1`.execute(handle.db).catch((cause: unknown) => cause);
  expect([faultOf(error), isTransient(error)]).toEqual(['unavailable', true]);
});

test('a connection that is cut in the middle of a statement leaves its outcome unknown and is not used again', async () => {
  await using handle = createDatabase({ ...options, url: database.url });
  const pid = async () =>
    (await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(handle.db)).rows[0]?.pid;
  const first = await pid();
  const sleeping = sql`select pg_sleep(30)`.execute(handle.db).catch((cause: unknown) => cause);
  await expect
    .poll(() =>
      query(
        database.url,
        `select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and query like '%pg_sleep%'`,
        [first],
      ),
    )
    .toHaveLength(1);
  expect(faultOf(await sleeping)).toBe('outcome_unknown');
  expect(await pid()).not.toBe(first);
});

test.each([
  ['statement_timeout', sql`select pg_sleep(30)`],
  ['conflict', sql`insert into broker.leader (term) values (1)`],
  ['defect', sql`select no_such_column`],
])('%s is told from the SQLSTATE, and the connection lives on', async (fault, statement) => {
  await using handle = createDatabase({ ...options, url: database.url });
  expect(faultOf(await statement.execute(handle.db).catch((cause: unknown) => cause))).toBe(fault);
  expect((await sql`select 1 as one`.execute(handle.db)).rows).toEqual([{ one: 1 }]);
});

test('who counts statements is told of each, with the class of what failed', async () => {
  const told: (string | undefined)[] = [];
  const onQuery = (errorClass: string | undefined): void => void told.push(errorClass);
  await using handle = createDatabase({ ...options, onQuery, url: database.url });
  await sql`select 1`.execute(handle.db);
  for (const statement of [
    sql`select pg_sleep(30)`,
    sql`insert into broker.leader (term) values (1)`,
    sql`select no_such_column`,
    sql`select 1 / 0`,
    sql`do $$ begin raise exception 'no' using errcode = 'BR001'; end $$`,
    sql`do $$ begin raise exception 'no' using errcode = '55P03'; end $$`,
    sql`do $$ begin raise exception 'no' using errcode = 'P0001'; end $$`,
  ]) {
    await statement.execute(handle.db).catch(() => undefined);
  }
  expect(told).toEqual([
    undefined,
    'statement_timeout',
    'constraint',
    'syntax_or_access',
    'data',
    'broker',
    'lock_timeout',
    'other',
  ]);
  await using nowhere = createDatabase({
    ...options,
    onQuery,
    url: 'postgres://nobody@127.0.0.1:1/none',
  });
  await sql`select 1`.execute(nowhere.db).catch(() => undefined);
  expect(told.at(-1)).toBe('connection');
});

test('the state of the pool: what is used, what is idle, what waits', async () => {
  await using handle = createDatabase({ ...options, poolMax: 2, url: database.url });
  expect(handle.poolState()).toEqual({ idle: 0, used: 0, waiting: 0, max: 2 });
  const sleeping = Array.from({ length: 3 }, () => sql`select pg_sleep(0.2)`.execute(handle.db));
  await eventually(() =>
    expect(handle.poolState()).toEqual({ idle: 0, used: 2, waiting: 1, max: 2 }),
  );
  await Promise.all(sleeping);
  expect(handle.poolState()).toEqual({ idle: 2, used: 0, waiting: 0, max: 2 });
});
