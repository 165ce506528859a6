/**
 * Goal: the roles of the stack's PostgreSQL come and go beside the server, while others are connected, and no password is seen by
 * anybody on the way.
 *
 * Method: deploy/postgres/roles against a server of deploy/postgres/start, with each PostgreSQL that this machine has; sessions of
 * the roles are held open meanwhile, and what the superuser finds in the catalogs is compared.
 */
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { describe, expect, test } from 'vitest';

import { migrate } from '#db/migrate.ts';
import { query } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { codeOf, findPostgresBuilds, StackPostgres } from '#test/support/stack-postgres.ts';

const builds = findPostgresBuilds();
const scripts = join(import.meta.dirname, '../../deploy/postgres');
const kinds = ['owner', 'api', 'worker', 'monitor'] as const;
/** invalid_password, also for a role that has none any more */
const refused = '28P01';

/** A session that is held open. */
async function openSession(url: string) {
  const client = new pg.Client({ connectionString: url });
  const lost: Error[] = [];
  client.on('error', (error) => lost.push(error));
  await client.connect();
  return {
    /** Whether it still answers. */
    isAlive: async (): Promise<boolean> =>
      client.query('select 1').then(
        () => lost.length === 0,
        () => false,
      ),
    async [Symbol.asyncDispose]() {
      await client.end().catch(() => undefined);
    },
  };
}

/** All that `roles` sets but the passwords, whose salt is another each time. */
async function rightsOf(postgres: StackPostgres): Promise<string> {
  const rows = await postgres.asSuperuser(
    `select to_jsonb(r) from pg_roles r where rolname ~ '^broker' order by 1;
     select roleid::regrole, member::regrole, to_jsonb(m) from pg_auth_members m order by 1, 2;
     select datname, datdba::regrole, datacl from pg_database order by 1;`,
  );
  const inside = `select nspname, nspowner, nspacl from pg_namespace order by 1; select extname from pg_extension order by 1`;
  return `${rows}\n${await postgres.asSuperuser(inside, 'broker')}`;
}

/** Resolves when so many sessions of `roles` wait for a lock. */
async function untilBlocked(postgres: StackPostgres, sessions = 1): Promise<void> {
  await eventually(
    async () => {
      const waiting = await postgres.asSuperuser('select count(*) from pg_locks where not granted');
      expect(Number(waiting)).toBe(sessions);
    },
    { timeoutMs: 30_000 },
  );
}

describe.each(builds)('$name', (build) => {
  test('a run that has nothing to do changes nothing, and nobody notices', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start();
    await using session = await openSession(postgres.url('api'));
    const before = await rightsOf(postgres);
    expect(await postgres.makeRoles()).toContain(
      `database broker, roles 'broker_owner_1', 'broker_api_1', 'broker_worker_1', 'broker_monitor_1'`,
    );
    expect(await rightsOf(postgres)).toBe(before);
    expect(before).toContain('broker_monitor_1');
    expect(await session.isAlive()).toBe(true);
  });

  test('a rotation: the new role beside the old one, then the old one alone is shut out', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start();
    const newer = { number: 2, password: 'second-password-0123' };
    await using old = await openSession(postgres.url('api'));
    await using worker = await openSession(postgres.url('worker'));
    await postgres.login('api', newer.number, newer.password);
    await postgres.makeRoles();
    await using young = await openSession(postgres.url('api', newer));
    expect(await codeOf(postgres.url('api'))).toBe('connected');
    expect(await old.isAlive()).toBe(true);

    expect(await postgres.makeRoles({ RETIRE_ROLES: 'on' })).toMatch(
      /can log in no more: broker_api_1\n$/,
    );
    expect(await codeOf(postgres.url('api'))).toBe(refused);
    expect(await old.isAlive()).toBe(false);
    expect(await young.isAlive()).toBe(true);
    expect(await worker.isAlive()).toBe(true);
    for (const kind of ['owner', 'worker', 'monitor'] as const) {
      expect(await codeOf(postgres.url(kind))).toBe('connected');
    }
    expect(await postgres.makeRoles({ RETIRE_ROLES: 'on' })).toContain('nobody who could before');

    // and back
    await postgres.login('api');
    await postgres.makeRoles();
    expect(await codeOf(postgres.url('api'))).toBe('connected');
    expect(await codeOf(postgres.url('api', newer))).toBe('connected');
  });

  test('of one kind the old roles are shut out, and those of another are left', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start();
    for (const kind of ['api', 'worker'] as const) {
      await postgres.login(kind, 2, 'second-password-0123');
    }
    await using worker = await openSession(postgres.url('worker'));
    await postgres.makeRoles({ RETIRE_ROLES: 'api' });
    expect(await codeOf(postgres.url('api'))).toBe(refused);
    expect(await codeOf(postgres.url('worker'))).toBe('connected');
    expect(await worker.isAlive()).toBe(true);
  });

  test('what one owner made, the next one may change', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start();
    await query(postgres.url('owner'), 'create table made_by_the_first (n int)');
    const newer = { number: 2, password: 'second-password-0123' };
    await postgres.login('owner', newer.number, newer.password);
    await postgres.makeRoles({ RETIRE_ROLES: 'owner' });
    await query(postgres.url('owner', newer), 'alter table made_by_the_first drop column n');
    expect(await codeOf(postgres.url('owner'))).toBe(refused);
  });

  test('another password of the same role: at once, and its sessions go on', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start();
    await using session = await openSession(postgres.url('worker'));
    // every character that there may be
    const password = '.another~Password_of-20-characters';
    await postgres.login('worker', 1, password);
    await postgres.makeRoles();
    expect(await codeOf(postgres.url('worker'))).toBe(refused);
    expect(await codeOf(postgres.url('worker', { password }))).toBe('connected');
    expect(await session.isAlive()).toBe(true);
  });

  test('a role that somebody made in another way is made right', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.serve();
    await postgres.asSuperuser(`
      create role broker_owner nologin; create role broker_monitor nologin;
      create role broker_api_1 superuser createrole nologin valid until '2001-01-01';
      create role broker_owner_1 noinherit login in role broker_owner;
      create role broker_monitor_1 noinherit login in role broker_monitor;`);
    await postgres.makeRoles();
    await migrate({ databaseUrl: postgres.url('owner') });
    await query(postgres.url('api'), 'select from broker.event');
    await query(postgres.url('monitor'), 'select from broker.backlog');
    await expect(query(postgres.url('api'), 'create role mine')).rejects.toThrow('denied');
    await expect(query(postgres.url('monitor'), 'select broker.pause($1)', ['x'])).rejects.toThrow(
      'denied',
    );
  });

  test('any number at once, the first time and when there is nothing to do', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.serve();
    const four = async (): Promise<unknown> =>
      Promise.all(Array.from({ length: 4 }, async () => postgres.makeRoles()));
    await four();
    await four();
    // all at the same step
    const held = await postgres.transaction('lock table pg_namespace in share mode', 'broker');
    const all = four();
    await untilBlocked(postgres, 4);
    await held[Symbol.asyncDispose]();
    await all;
    for (const kind of kinds) expect(await codeOf(postgres.url(kind))).toBe('connected');
  });

  test.each(['SIGKILL', 'SIGTERM'] as const)(
    '%s half way: the next run is whole',
    async (signal) => {
      await using postgres = await StackPostgres.open(build);
      await postgres.serve();
      {
        // the roles are there then, and the database is not
        await using _ = await postgres.transaction('lock table pg_database in share mode');
        const run = postgres.run('roles');
        await untilBlocked(postgres);
        if (signal === 'SIGKILL') await postgres.kill(run);
        else {
          run.child.kill(signal);
          expect(await run.exited).toEqual({ code: 143, signal: null });
          expect(run.output()).toContain('told to stop');
        }
        const done = `select count(*) from pg_roles where rolname = 'broker_monitor_1'`;
        expect(await postgres.asSuperuser(done)).toBe('1');
      }
      expect(await codeOf(postgres.url('api'))).not.toBe('connected');
      await postgres.makeRoles();
      await migrate({ databaseUrl: postgres.url('owner') });
      await query(postgres.url('api'), 'select from broker.event');
    },
  );

  test('waits for a server that is not there yet', async () => {
    await using postgres = await StackPostgres.open(build);
    const run = postgres.run('roles');
    await eventually(() => expect(run.output()).toContain('waits for PostgreSQL'));
    await postgres.serve();
    expect(await run.exited).toEqual({ code: 0, signal: null });
    expect(await codeOf(postgres.url('api'))).toBe('connected');
  });

  test('a server that stays away, and a standby, end it with words', async () => {
    await using postgres = await StackPostgres.open(build);
    await expect(postgres.makeRoles({ WAIT_SECONDS: '0' })).rejects.toThrow(
      /ended with 1: .*cannot be set up after 0 s: .*No such file/s,
    );
    const run = await postgres.start();
    await postgres.stop(run);
    await writeFile(join(postgres.dataDir, 'standby.signal'), '');
    await postgres.serve();
    await expect(postgres.makeRoles({ WAIT_SECONDS: '0' })).rejects.toThrow(
      /ended with 1: .*it is in recovery, or a standby/s,
    );
  });

  test('no password is seen in the log, in statistics, or in what it says', async () => {
    await using postgres = await StackPostgres.open(build);
    const conf = join(postgres.dir, 'conf');
    await cp(scripts, conf, { recursive: true });
    await writeFile(
      join(conf, 'extra.conf'),
      `log_statement = all\nlog_min_duration_statement = 0\nlog_min_messages = debug5\nlog_min_error_statement = debug5
       log_transaction_sample_rate = 1\nlog_lock_waits = on\ndeadlock_timeout = 1ms\ndebug_print_parse = on\n`,
    );
    const server = await postgres.serve({ CONF_DIR: conf });
    const seen = (): Promise<string> =>
      postgres.asSuperuser(`select count(*) from pg_stat_activity where query ~ 'pass[w]ord-of';
        select count(*) from pg_stat_activity where application_name = 'psql' and wait_event_type = 'Lock'`);
    await postgres.makeRoles();
    {
      // held at the statement that has the first password
      await using _ = await postgres.transaction('lock table pg_authid in share mode');
      const run = postgres.run('roles');
      await untilBlocked(postgres);
      expect(await seen()).toBe('0\n1');
      // ended there by somebody: what was under way is part of such a message
      await postgres.asSuperuser(
        `select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'`,
      );
      expect((await run.exited).code).toBe(1);
      expect(run.output()).toContain('the roles could not be made');
      expect(run.output()).not.toContain('password-of');
    }
    await postgres.makeRoles();
    const kept = await postgres.asSuperuser(
      `select count(*) filter (where query ~ 'pass[w]ord-of'), count(*) > 0 from pg_stat_statements`,
      'broker',
    );
    expect(kept).toBe('0|t');
    // the log does have what others do
    await query(postgres.url('api'), `select 'needle in the log'`);
    expect(server.output()).toContain('needle in the log');
    expect(server.output()).not.toContain('password-of');
  });

  test('a PostgreSQL elsewhere, as README.md says it, by one who is no superuser', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.serve();
    const text = await readFile(join(scripts, 'README.md'), 'utf8');
    const block = /```sql\n(create role[\s\S]*?)```/.exec(text)?.[1] ?? '';
    const statements = block.replaceAll(
      /(broker_(\w+)_1 login password) '…'/g,
      `$1 'password-of-the-$2'`,
    );
    expect(statements.match(/password-of-the/g)).toHaveLength(4);
    await postgres.asSuperuser(`
      create role provider createrole createdb;
      grant pg_signal_backend, pg_read_all_stats, pg_monitor to provider with admin option;
      set session authorization provider;
      ${await readFile(join(scripts, 'roles.sql'), 'utf8')}
      ${statements}`);
    await migrate({ databaseUrl: postgres.url('owner') });
    await query(postgres.url('api'), 'select from broker.event');
    await expect(query(postgres.url('monitor'), 'select from broker.event')).rejects.toThrow(
      'denied',
    );
    await query(postgres.url('monitor'), 'select from broker.backlog');
    for (const kind of ['api', 'worker', 'monitor'] as const) {
      const may = `select has_database_privilege('broker', 'create, temporary') as any`;
      expect(await query(postgres.url(kind), may)).toEqual([{ any: false }]);
    }
    const owner = `select nspowner::regrole from pg_namespace where nspname = 'broker'`;
    expect(await postgres.asSuperuser(owner, 'broker')).toBe('broker_owner');
  });
});
