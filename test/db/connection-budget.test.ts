import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, inject, test } from 'vitest';
import {
  checkConnectionBudget,
  type ConnectionBudgetOptions,
  directConnections,
} from '#db/connection-budget.ts';
import { Cluster } from '../support/cluster.ts';
import { cloneDatabase, query } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { asRole } from '../support/roles.ts';

const pool = { poolMax: 4, statementTimeoutMs: 5000 };

async function check(url: string, options: Partial<ConnectionBudgetOptions>) {
  return checkConnectionBudget({
    ...pool,
    databaseUrl: await asRole('owner', url),
    replicas: {},
    ...options,
  });
}

/** What the server says by itself. */
async function limitsOf(url: string): Promise<number> {
  const [row] = await query<{ allowed: number }>(
    url,
    `select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0) as allowed`,
  );
  return row!.allowed;
}

describe('the sum', () => {
  test('counts what each replica holds, one more of each, migrate, and ten for people', async () => {
    await using database = await cloneDatabase();
    const replicas = { api: 3, worker: 3, reaper: 2 };
    const budget = await check(database.url, { replicas });
    expect(budget).toEqual({
      needed: 4 * 5 + 4 * 6 + 3 * 6 + 1 + 10,
      allowed: await limitsOf(database.url),
      faults: [],
    });
  });

  test('has nothing for what does not run', async () => {
    await using database = await cloneDatabase();
    const { needed } = await check(database.url, { replicas: { api: 1, worker: 0 } });
    expect(needed).toBe(2 * 5 + 1 + 10);
  });

  test('is refused by the server, by one connection, and says how it comes about', async () => {
    await using database = await cloneDatabase();
    const allowed = await limitsOf(database.url);
    // 1 + 10 beside it; a pool of 0 makes a replica of the API hold one
    const fits = { poolMax: 0, replicas: { api: allowed - 12 } };
    expect((await check(database.url, fits)).faults).toEqual([]);
    const over = { poolMax: 0, replicas: { api: allowed - 11 } };
    expect((await check(database.url, over)).faults).toEqual([
      expect.stringMatching(
        new RegExp(
          String.raw`^${allowed + 1} connections are needed, and the database allows ${allowed} \(max_connections \d+ less \d+ reserved\):
  api: ${allowed - 11} and 1 during an update, 1 each \(pool 0, direct 1\): ${allowed - 10}
  migrate: 1
  psql and exporters: 10$`,
        ),
      ),
    ]);
  });

  test('is refused by a limit of the database', async () => {
    await using database = await cloneDatabase();
    await query(database.url, `alter database ${database.name} connection limit 20`);
    const { allowed, faults } = await check(database.url, { replicas: { api: 1 } });
    expect(allowed).toBe(20);
    expect(faults).toEqual([expect.stringContaining('20 (CONNECTION LIMIT of the database)')]);
  });
});

describe.runIf(inject('postgres').roles)('limits of roles', () => {
  const { prefix } = inject('postgres').roles ?? { prefix: '' };

  test('of a group: what its processes hold', async () => {
    await using database = await cloneDatabase();
    const name = `${prefix}_limited`;
    await query(
      database.url,
      `create role ${name} login connection limit 17 in role broker_worker`,
    );
    try {
      const replicas = { api: 9, worker: 2 };
      expect((await check(database.url, { replicas })).faults).toEqual([
        `18 connections are needed by the role ${name}, and its CONNECTION LIMIT is 17`,
      ]);
      await query(database.url, `alter role ${name} connection limit 18`);
      expect((await check(database.url, { replicas })).faults).toEqual([]);
    } finally {
      await query(database.url, `drop role ${name}`);
    }
  });

  test('of the one role that everything logs in as', async () => {
    await using database = await cloneDatabase();
    const url = new URL(database.url);
    url.username = `${prefix}_alone`;
    url.password = 'a-password';
    await query(
      database.url,
      `create role ${url.username} login connection limit 10 password '${url.password}'`,
    );
    try {
      const options = { databaseUrl: url.href, replicas: { api: 1 } };
      expect((await check(database.url, options)).faults).toEqual([
        `11 connections are needed by the role ${url.username}, and its CONNECTION LIMIT is 10`,
      ]);
    } finally {
      await query(database.url, `drop role ${url.username}`);
    }
  });
});

test('what is counted is what real processes hold', async () => {
  await using database = await cloneDatabase();
  // a pool of one: it is always full, because each of them says that it lives, once a second
  await using cluster = await Cluster.start({
    databaseUrl: database.url,
    apis: 2,
    workers: 2,
    reapers: 2,
    env: { DATABASE_POOL_MAX: '1' },
  });
  await eventually(async () => {
    const rows = await query<{ name: string; held: number }>(
      database.url,
      `select application_name as name, count(*)::int as held from pg_stat_activity
        where datname = $1 and application_name ~ '^broker-(api|worker|reaper)-' group by 1`,
      [database.name],
    );
    const held = Object.fromEntries(rows.map((row) => [row.name, row.held]));
    const expected = Object.entries(directConnections).flatMap(([service, direct]) =>
      [1, 2].map((n) => [`broker-${service}-${service}-${n}`, 1 + direct]),
    );
    expect(held).toEqual(Object.fromEntries(expected));
  });
  cluster.assertAlive();
});

test('migrate ends before it changes anything, with the sum', async () => {
  await using database = await cloneDatabase();
  await query(database.url, 'drop schema broker cascade');
  const run = promisify(execFile)(process.execPath, ['apps/migrate/main.ts'], {
    env: {
      DATABASE_URL: await asRole('owner', database.url),
      API_REPLICAS: '400',
      WORKER_REPLICAS: '2',
    },
  });
  await expect(run).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringMatching(
      /api: 400 and 1 during an update, 5 each \(pool 4, direct 1\): 2005\n {2}worker: 2 and 1 .*: 18\n/,
    ),
  });
  expect(await query(database.url, `select from pg_namespace where nspname = 'broker'`)).toEqual(
    [],
  );
});
