/**
 * Goal: the PostgreSQL of the stack comes up by itself, with roles of few rights and no door that is open by mistake, and a start
 * that is refused or broken off does no harm. (Its roles over time: postgres-roles.test.ts.)
 *
 * Method: deploy/postgres/start and then roles, as an ordinary user, with each PostgreSQL that this machine has; connections as the
 * processes make them.
 */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { describe, expect, test } from 'vitest';

import { migrate } from '#db/migrate.ts';
import { query } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { selfSigned } from '#test/support/self-signed.ts';
import {
  codeOf,
  findPostgresBuilds,
  type Kind,
  StackPostgres,
} from '#test/support/stack-postgres.ts';

const builds = findPostgresBuilds();
const settingsScript = join(import.meta.dirname, '../../deploy/postgres/settings');

const kinds = ['owner', 'api', 'worker', 'monitor'] as const;
/** invalid_password, and invalid_authorization_specification: pg_hba.conf says no */
const wrongPassword = '28P01';
const notAllowed = '28000';

describe.each(builds)('$name', (build) => {
  test('first start: roles with their rights, TLS that is verified, and no other way in', async () => {
    await using postgres = await StackPostgres.open(build);
    const run = await postgres.start();
    await migrate({ databaseUrl: postgres.url('owner') });

    const who = `select current_user::text as name, (select version from pg_stat_ssl where pid = pg_backend_pid()) as tls,
      current_setting('data_checksums') as checksums, current_setting('server_encoding') as encoding`;
    const expected = { tls: 'TLSv1.3', checksums: 'on', encoding: 'UTF8' };
    for (const [kind, name] of [
      ['owner', 'broker_owner'],
      ['api', 'broker_api_1'],
      ['worker', 'broker_worker_1'],
      ['monitor', 'broker_monitor_1'],
    ] satisfies [Kind, string][]) {
      expect(await query(postgres.url(kind), who)).toEqual([{ name, ...expected }]);
    }
    await query(postgres.url('api'), 'select from broker.event');
    await expect(query(postgres.url('monitor'), 'select from broker.event')).rejects.toThrow(
      'permission denied',
    );
    await expect(query(postgres.url('api'), 'create temporary table x ()')).rejects.toThrow(
      'permission denied',
    );

    const plain = { query: 'sslmode=disable' };
    expect(await codeOf(postgres.url('api', plain))).toBe(notAllowed);
    expect(await codeOf(postgres.url('api', { password: 'password-of-nobody' }))).toBe(
      wrongPassword,
    );
    const superuser = { user: 'postgres', password: 'password-of-nobody' };
    expect(await codeOf(postgres.url('owner', superuser))).toBe(notAllowed);
    expect(await codeOf(postgres.url('owner', { ...superuser, ...plain }))).toBe(notAllowed);
    expect(await codeOf(postgres.url('owner', { database: 'postgres' }))).toBe(notAllowed);
    // the certificate is for localhost
    expect(await codeOf(postgres.url('api', { host: '127.0.0.1' }))).toBe(
      'ERR_TLS_CERT_ALTNAME_INVALID',
    );
    // not even from the network does anybody become superuser who has given it a password
    await postgres.asSuperuser(`alter role postgres password 'password-of-nobody'`);
    expect(await codeOf(postgres.url('owner', { ...superuser, database: 'postgres' }))).toBe(
      notAllowed,
    );
    expect(run.output()).not.toContain('password-of-the');
  });

  test('a start after that has the data and the roles, without the secrets that made them', async () => {
    await using postgres = await StackPostgres.open(build);
    const first = await postgres.start();
    await query(postgres.url('owner'), 'create table kept as select 42 as n');
    await postgres.stop(first);
    expect((await first.exited).code).toBe(0);

    for (const kind of kinds) await postgres.secret(`database_url_${kind}`, undefined);
    await postgres.serve();
    expect(await query(postgres.url('owner'), 'select n from kept')).toEqual([{ n: 42 }]);
    expect(await codeOf(postgres.url('api'))).toBe('connected');
    expect(await postgres.dataNames()).toEqual(['docker', 'docker.lock', 'run']);
  });

  // what is there when the blow comes; the last one is after the cluster has its name
  test.each([
    'docker.lock',
    'run/initdb.log',
    'docker.new/PG_VERSION',
    'docker.new/global/pg_control',
    'docker/PG_VERSION',
  ])('killed during the first start, at %s: the next one is whole', async (name) => {
    await using postgres = await StackPostgres.open(build);
    const run = postgres.run();
    const path = join(postgres.dir, 'data', name);
    await eventually(
      () => {
        if (!existsSync(path)) throw new Error(`${name} is not there: ${run.output()}`);
      },
      { timeoutMs: 30_000, intervalMs: 1 },
    );
    await postgres.kill(run);
    expect(run.output()).not.toContain('ready to accept connections');
    await postgres.start();
    await migrate({ databaseUrl: postgres.url('owner') });
    expect(await codeOf(postgres.url('monitor'))).toBe('connected');
    expect(await postgres.dataNames()).toEqual(['docker', 'docker.lock', 'run']);
  });

  test.each(['SIGTERM', 'SIGINT'] as const)('%s during the set-up ends it', async (signal) => {
    await using postgres = await StackPostgres.open(build);
    const run = postgres.run();
    const path = join(postgres.dir, 'data/docker.new/PG_VERSION');
    await eventually(
      () => {
        if (!existsSync(path)) throw new Error(run.output());
      },
      { timeoutMs: 30_000, intervalMs: 1 },
    );
    run.child.kill(signal);
    expect(await run.exited).toEqual({ code: 143, signal: null });
    expect(run.output()).toContain('told to stop during the set-up');
    await postgres.start();
  });

  test('a stop does not wait for who is connected', async () => {
    await using postgres = await StackPostgres.open(build);
    const run = await postgres.start();
    const client = new pg.Client({ connectionString: postgres.url('api') });
    const { promise: cut, resolve } = Promise.withResolvers<Error>();
    client.on('error', resolve);
    await client.connect();
    await postgres.stop(run);
    expect((await run.exited).code).toBe(0);
    expect(await cut).toBeInstanceOf(Error);
  });

  test('only the networks that are named may connect', async () => {
    await using postgres = await StackPostgres.open(build);
    const run = await postgres.start({ POSTGRES_ALLOW: '10.99.0.0/16, 127.77.0.0/16' });
    expect(await codeOf(postgres.url('api'))).toBe(notAllowed);
    await postgres.stop(run);
    await postgres.start({ POSTGRES_ALLOW: '10.99.0.0/16, 127.0.0.0/8 ::1/128' });
    expect(await codeOf(postgres.url('api'))).toBe('connected');
  });

  test('a second one on the same data is refused, and the first goes on', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start();
    const second = postgres.run('start', { RUN_DIR: join(postgres.dir, 'data/run2') });
    expect((await second.exited).code).toBe(64);
    expect(second.output()).toContain('another PostgreSQL runs on');
    expect(await codeOf(postgres.url('api'))).toBe('connected');
  });

  test('settings of the server: what the memory and the variables say', async () => {
    await using postgres = await StackPostgres.open(build);
    await postgres.start({
      POSTGRES_MEMORY: '1G',
      POSTGRES_MAX_CONNECTIONS: '77',
    });
    const rows = await query<{ name: string; value: string }>(
      postgres.url('monitor'),
      `select name, current_setting(name) as value from pg_settings where name in ('shared_buffers', 'max_connections', 'ssl', 'fsync',
        'synchronous_commit', 'full_page_writes', 'password_encryption', 'wal_compression', 'shared_preload_libraries')`,
    );
    const values = Object.fromEntries(rows.map((row) => [row.name, row.value]));
    expect(values).toMatchObject({
      shared_buffers: '256MB',
      max_connections: '77',
      ssl: 'on',
      fsync: 'on',
      synchronous_commit: 'on',
      full_page_writes: 'on',
      password_encryption: 'scram-sha-256',
      wal_compression: expect.stringMatching(/^(lz4|pglz|on)$/),
      shared_preload_libraries: 'pg_stat_statements',
    });
    expect(
      await query(postgres.url('monitor'), 'select calls from pg_stat_statements limit 1'),
    ).toHaveLength(1);
  });
});

const [anyBuild] = builds;
/** Makes something wrong; returns variables for the start. */
type Spoil = (postgres: StackPostgres) => Promise<Record<string, string> | void>;
describe.runIf(anyBuild)('a start is refused, and says why', () => {
  test.each<[string, Spoil, string]>([
    [
      'a certificate that is missing',
      async (postgres) => postgres.secret('postgres_cert', undefined),
      'the secret postgres_cert is missing',
    ],
    [
      'a secret that is empty',
      async (postgres) => postgres.secret('postgres_key', ''),
      'the secret postgres_key is empty',
    ],
    [
      'a key that does not fit the certificate',
      async (postgres) => postgres.secret('postgres_key', selfSigned().key),
      'the secret postgres_key does not fit postgres_cert',
    ],
    ...(
      [
        ['POSTGRES_MEMORY', 'much', "POSTGRES_MEMORY is not valid: 'much'"],
        ['POSTGRES_MEMORY', 'G', "POSTGRES_MEMORY is not valid: 'G'"],
        ['POSTGRES_MEMORY', '2.5G', "POSTGRES_MEMORY is not valid: '2.5G'"],
        ['POSTGRES_MEMORY', '2147483648', "POSTGRES_MEMORY is not valid: '2147483648'"],
        ['POSTGRES_MEMORY', '100M', '100 MB of memory are too little'],
        ['POSTGRES_DATABASE', 'Broker', 'POSTGRES_DATABASE is not the name of a database'],
        ['POSTGRES_MAX_CONNECTIONS', '2000', '512 MB are too little for 2000 connections'],
        ['POSTGRES_ALLOW', 'everybody', "POSTGRES_ALLOW has 'everybody'"],
        ['POSTGRES_ALLOW', '10.0.0.1', 'is no CIDR range'],
        ['PGDATA', 'data', "PGDATA is not valid: 'data'"],
        ['PGDATA', "/tmp/a'b", 'PGDATA is not valid'],
        ['SOCKET_DIR', '/nowhere', 'SOCKET_DIR: /nowhere is no folder'],
      ] as const
    ).map(([name, value, words]): [string, Spoil, string] => [
      `${name}=${value}`,
      async () => ({ [name]: value }),
      words,
    ]),
    [
      'a folder of data that is none',
      async (postgres) => {
        await mkdir(postgres.dataDir);
        await writeFile(join(postgres.dataDir, 'photo.jpg'), '');
      },
      'has files in it',
    ],
    [
      'data of another major version',
      async (postgres) => {
        await mkdir(postgres.dataDir);
        await writeFile(join(postgres.dataDir, 'PG_VERSION'), '13\n');
      },
      'are of PostgreSQL 13, and this is',
    ],
  ])('%s', async (_, spoil, words) => {
    await using postgres = await StackPostgres.open(anyBuild!);
    const env = await spoil(postgres);
    const run = postgres.run('start', env ?? {});
    expect(await run.exited).toEqual({ code: 64, signal: null });
    expect(run.output()).toContain(words);
  });
});

describe('settings', () => {
  function read(memory: number, connections: number): Map<string, string> {
    const text = execFileSync('sh', [settingsScript, String(memory), String(connections)], {
      encoding: 'utf8',
    });
    const lines = text.split('\n').filter((line) => /^[a-z_]+ = /.test(line));
    return new Map(lines.map((line) => line.split(' = ') as [string, string]));
  }
  const megabytes = (text = ''): number =>
    text.endsWith('kB') ? Number.parseInt(text) / 1024 : Number.parseInt(text);

  test.each([512, 4096, 65_536])('for %i MB everything fits at once', (memory) => {
    const connections = 200;
    const values = read(memory, connections);
    const of = (name: string): number => megabytes(values.get(name));
    const names = ['shared_buffers', 'effective_cache_size', 'work_mem', 'maintenance_work_mem'];
    const more = ['autovacuum_work_mem', 'min_wal_size', 'max_wal_size'];
    console.log(memory, Object.fromEntries([...names, ...more].map((each) => [each, of(each)])));
    expect(of('shared_buffers')).toBe(memory / 4);
    expect(of('effective_cache_size')).toBeGreaterThan(of('shared_buffers'));
    expect(of('effective_cache_size')).toBeLessThan(memory);
    const workers = Number(values.get('autovacuum_max_workers'));
    const all =
      of('shared_buffers') +
      connections * of('work_mem') +
      of('maintenance_work_mem') +
      workers * of('autovacuum_work_mem');
    expect(all).toBeLessThan(memory * 0.7);
    expect(of('min_wal_size')).toBeLessThan(of('max_wal_size'));
    expect(of('max_wal_size')).toBeLessThanOrEqual(8192);
  });

  test('more memory is never less of anything', () => {
    const sizes = [400, 512, 1000, 2048, 4096, 16_384, 65_536, 1_000_000];
    const rows = sizes.map((memory) => read(memory, 200));
    for (const name of ['shared_buffers', 'work_mem', 'maintenance_work_mem', 'max_wal_size']) {
      const values = rows.map((row) => megabytes(row.get(name)));
      expect(values).toEqual(values.toSorted((a, b) => a - b));
    }
  });

  test.each([
    [['512'], 'the arguments are MEMORY_MB MAX_CONNECTIONS'],
    [['512', '0'], "'0' is not a number"],
    [['0512', '100'], "'0512' is not a number"],
    [['512', '10'], '10 connections are too few'],
    [['256', '200'], '400 MB at least, or 128 connections'],
  ])('%j is refused', async (args, words) => {
    const run = promisify(execFile)('sh', [settingsScript, ...args]);
    await expect(run).rejects.toMatchObject({ code: 64, stderr: expect.stringContaining(words) });
  });
});
