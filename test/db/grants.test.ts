import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { createDatabase, type DatabaseHandle } from '#db/client.ts';
import { migrate } from '#db/migrate.ts';
import { ensurePartitions } from '#db/partitions.ts';
import { aTopic } from '../support/factory.ts';
import { cloneDatabase, query, type TestDatabase } from '../support/database.ts';
import { asRole, type Role } from '../support/roles.ts';

// That a right is missing shows in every test that runs processes: they have these roles there. Here: what is not theirs.

const resources = new AsyncDisposableStack();
let database: TestDatabase;
let owner: DatabaseHandle;

beforeAll(async () => {
  database = resources.use(await cloneDatabase());
  owner = resources.use(
    createDatabase({
      url: database.url,
      applicationName: 'broker-test',
      poolMax: 1,
      statementTimeoutMs: 5000,
    }),
  );
  await aTopic(owner.db);
});

afterAll(async () => {
  await resources.disposeAsync();
});

async function tryAs(role: Role, statement: string): Promise<string> {
  return query(await asRole(role, database.url), statement).then(
    () => 'done',
    (error: unknown) => (error as { code: string }).code,
  );
}

const refused = '42501';

describe.runIf(inject('postgres').roles)('with the roles of deploy/postgres/roles.sql', () => {
  test.each<[Role, string]>([
    ['worker', 'delete from broker.topic'],
    ['worker', `update broker.topic set state = 'deleted'`],
    ['worker', `insert into broker.topic (name) values ('x')`],
    ['worker', 'select hash from broker.api_key'],
    ['worker', 'select from broker.api_key'],
    ['worker', `update broker.subscription set push_endpoint = 'https://elsewhere.example'`],
    ['worker', 'delete from broker.subscription'],
    ['worker', 'update broker.push_secret set sealed = sealed'],
    ['worker', `update broker.worker set gone_at = now()`],
    ['worker', 'select from broker.dead_letter'],
    ['worker', 'select from broker.idempotency_key'],
    ['worker', `select broker.pause('x')`],
    ['worker', `select broker.set_log_level('debug')`],
    ['worker', 'delete from broker.log_level'],
    ['worker', 'select broker.ensure_partitions(1::smallint)'],
    ['worker', 'update broker.leader set term = term + 1'],
    ['worker', 'delete from broker.event'],
    ['worker', 'truncate broker.queue'],
    ['worker', 'create table broker.x ()'],
    ['worker', 'create table public.x ()'],
    ['api', 'drop table broker.event'],
    ['api', 'alter table broker.topic add column x int'],
    ['api', 'truncate broker.queue'],
    ['api', 'delete from broker.topic'],
    ['api', 'delete from broker.event'],
    ['api', `update broker.event set type = 'x'`],
    ['api', 'delete from broker.attempt'],
    ['api', 'select sealed from broker.push_secret'],
    ['api', 'update broker.leader set term = term + 1'],
    ['api', 'update broker.job set done = 0'],
    ['api', `update broker.compatibility set minimum_migration = '9'`],
    ['api', `select broker.add_partition('event', 'x', 'id', 1::smallint, 0, 1)`],
    ['api', 'select broker.purge_deleted(1, 1)'],
    ['api', `select nextval('broker.worker_lock_seq')`],
    ['api', `create or replace function broker.x() returns int language sql as 'select 1'`],
    ['api', 'set role broker_owner'],
    ['monitor', 'select from broker.event'],
    ['monitor', 'select from broker.queue'],
    ['monitor', 'select from broker.dead_letter'],
    ['monitor', 'select data from broker.dead_letters'],
    ['monitor', 'select subject from broker.dead_letters'],
    ['monitor', 'select from broker.push_secret'],
    ['monitor', 'select push_headers from broker.subscription'],
    ['monitor', 'select from broker.api_key'],
    ['monitor', 'delete from broker.backlog_sample'],
    ['monitor', 'delete from broker.worker'],
    ['monitor', `select broker.pause('x')`],
    ['monitor', `select broker.id_time(1)`],
    ['monitor', 'create table public.x ()'],
  ])('%s: %s is refused', async (role, statement) => {
    expect(await tryAs(role, statement)).toBe(refused);
  });

  test.each<[Role, string]>([
    ['monitor', 'select * from broker.backlog'],
    ['monitor', 'select * from broker.in_flight'],
    ['monitor', 'select * from broker.oldest_waiting'],
    ['monitor', 'select * from broker.partition'],
    ['monitor', 'select * from broker.workers'],
    [
      'monitor',
      'select topic, subscription, id, event_id, reason, last_status, attempts, died_at, type from broker.dead_letters',
    ],
    ['monitor', 'select query from pg_stat_activity'],
    ['worker', 'select sealed from broker.push_secret'],
  ])('%s: %s is allowed', async (role, statement) => {
    expect(await tryAs(role, statement)).toBe('done');
  });

  test('nobody else may anything: neither call a function nor look into a table', async () => {
    const [row] = await query<{ found: string[] }>(
      database.url,
      `with stranger as (select 'public' as name)
       select array(
         select 'function ' || p.oid::regprocedure from pg_proc p, stranger s
          where p.pronamespace = 'broker'::regnamespace and has_function_privilege(s.name, p.oid, 'execute')
         union all
         select 'relation ' || c.oid::regclass from pg_class c, stranger s
          where c.relnamespace = 'broker'::regnamespace and c.relkind in ('r', 'p', 'v')
            and has_any_column_privilege(s.name, c.oid, 'select, insert, update')
         union all
         select 'schema' from stranger s where has_schema_privilege(s.name, 'broker', 'usage')
       ) as found`,
    );
    expect(row?.found).toEqual([]);
  });

  test('only the worker reads secrets; the API makes them', async () => {
    const rows = await query<{ role: string }>(
      database.url,
      `select rolname as role from pg_roles
        where rolname ~ '^broker_' and rolname !~ '^broker_test_'
          and has_column_privilege(rolname, 'broker.push_secret', 'sealed', 'select') order by 1`,
    );
    expect(rows.map(({ role }) => role)).toEqual(['broker_owner', 'broker_worker']);
  });

  test('a new partition is covered, whoever makes it', async () => {
    const partitions = async () =>
      (
        await query<{ n: number }>(
          database.url,
          `select count(*)::int as n from broker.partition where retention_class = 2160 and attached`,
        )
      )[0]?.n;
    expect(await partitions()).toBe(0);
    const apiUrl = await asRole('api', database.url);
    await using api = createDatabase({
      url: apiUrl,
      applicationName: 'broker-test',
      poolMax: 1,
      statementTimeoutMs: 5000,
    });
    await ensurePartitions(api.db, 2160);
    expect(await partitions()).toBe(3);
    const [row] = await query<{ owners: string[] }>(
      database.url,
      `select array_agg(distinct pg_get_userbyid(relowner)::text) as owners from pg_class where relname ~ '_2160h_'`,
    );
    expect(row?.owners).toEqual(['broker_owner']);
    await query(
      apiUrl,
      `insert into broker.event (id, published_at, expires_at, topic_id, retention_class, type)
       values (broker.id_floor(now()) << 10, now(), now(), 1, 2160, 'test')`,
    );
    expect(
      await query(apiUrl, 'select from broker.event where retention_class = 2160'),
    ).toHaveLength(1);
    // the partition by its own name is nobody's but the owner's
    const [{ name } = { name: '' }] = await query<{ name: string }>(
      database.url,
      `select event_partition as name from broker.partition where retention_class = 2160 limit 1`,
    );
    expect(await tryAs('api', `select from broker.${name}`)).toBe(refused);
  });

  test('the API makes partitions of the classes that there are, and no others', async () => {
    expect(await tryAs('api', 'select broker.ensure_partitions(7::smallint)')).toBe('22023');
  });

  test('objects of its own do not deceive the function that has the owner’s rights', async () => {
    const url = await asRole('api', database.url);
    await query(url, 'select broker.ensure_partitions(24::smallint)');
    // clones of the tests leave everybody the right to make temporary tables, which a deployment takes away
    const lie = `create temporary table pg_inherits (inhrelid oid);
      set search_path = pg_temp, pg_catalog;
      select broker.ensure_partitions(24::smallint)`;
    await expect(query(url, lie)).resolves.not.toThrow();
  });

  test('migrate grants again what was taken away, takes away what everybody was given, and else does nothing', async () => {
    const url = await asRole('owner', database.url);
    const lines: string[] = [];
    const run = async () => migrate({ databaseUrl: url, onProgress: (line) => lines.push(line) });
    await run();
    expect(lines).toEqual([]);
    await query(url, 'revoke insert on broker.event from broker_api');
    await query(url, 'grant execute on function broker.pause to public');
    await run();
    expect(lines).toEqual(['granted to broker_api, broker_monitor, broker_worker']);
    const [row] = await query<{ api: boolean; everybody: boolean }>(
      url,
      `select has_table_privilege('broker_api', 'broker.event', 'insert') as api,
          has_function_privilege('public', 'broker.pause(text)', 'execute') as everybody`,
    );
    expect(row).toEqual({ api: true, everybody: false });
    await run();
    expect(lines).toHaveLength(1);
  });

  test('what the owner logs in as does not own: all of them are one owner', async () => {
    const url = await asRole('owner', database.url);
    const [row] = await query<{ same: boolean; name: string }>(
      url,
      `select session_user = current_user as same, current_user as name`,
    );
    expect(row).toEqual({ same: false, name: 'broker_owner' });
    const { rows } = await sql<{ owners: string[] }>`
      select array_agg(distinct pg_get_userbyid(relowner)::text) as owners from pg_class
       where relnamespace = 'broker'::regnamespace`.execute(owner.db);
    expect(rows[0]?.owners).toEqual(['broker_owner']);
  });
});
