import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import pg from 'pg';
import type { TestProject } from 'vitest/node';

import { lockDataDir } from '../../apps/standalone/data-dir-lock.ts';
import { startEmbeddedPostgres } from '../../apps/standalone/embedded-postgres.ts';
import { stopLeftovers } from '../../apps/standalone/postmaster.ts';
import { startPostgresContainer } from '../support/postgres-container.ts';
import { createTestRoles, dropTestRoles, type TestRoles } from '../support/roles.ts';

/** What the test processes need to know of the server; read it with `inject('postgres')`. */
export interface TestPostgres {
  /** May create and drop databases; a superuser unless TEST_DATABASE_URL says otherwise. */
  readonly adminUrl: string;
  /** Begins the name of each database of this run. */
  readonly prefix: string;
  /** Migrated, and closed to connections. */
  readonly template: string;
  /** As whom processes work in the tests; undefined where who runs them may not make roles. */
  readonly roles: TestRoles | undefined;
}

declare module 'vitest' {
  interface ProvidedContext {
    postgres: TestPostgres;
  }
}

interface Server {
  readonly url: string;
  readonly description: string;
  stop(): Promise<void>;
}

const SCRATCH_PREFIX = 'event-broker-test-';
/** Tests crash processes, never the machine: what is written need not survive that. */
const SETTINGS = { fsync: 'off', full_page_writes: 'off', max_connections: 200 };

/** vitest loads this file once for each project that names it, in one process; they share one server through this. */
const shared = globalThis as {
  eventBrokerTestPostgres?: { users: number; ready: Promise<Running> };
};
type Running = { readonly provided: TestPostgres; stop(): Promise<void> };

/** vitest global setup: one PostgreSQL and one migrated template database for all projects of a run. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  shared.eventBrokerTestPostgres ??= { users: 0, ready: startTestPostgres() };
  const current = shared.eventBrokerTestPostgres;
  current.users += 1;
  project.provide('postgres', (await current.ready).provided);
  return async () => {
    current.users -= 1;
    if (current.users > 0) return;
    delete shared.eventBrokerTestPostgres;
    await (await current.ready).stop();
  };
}

async function startTestPostgres(): Promise<Running> {
  const server = await startServer();
  process.stdout.write(`PostgreSQL of the tests: ${server.description}\n`);
  const prefix = `broker_test_${Math.random().toString(36).slice(2, 8)}`;
  const isSuperuser = await mayMakeRoles(server.url);
  process.stdout.write(
    `roles of the tests: ${isSuperuser ? 'owner, api, worker, monitor' : 'the one of TEST_DATABASE_URL, which is no superuser'}\n`,
  );
  const provided = {
    adminUrl: server.url,
    prefix,
    template: `${prefix}_template`,
    roles: isSuperuser ? { prefix, password: randomUUID() } : undefined,
  };
  const stop = async () => {
    try {
      await dropDatabases(provided);
      if (provided.roles !== undefined) await dropTestRoles(server.url, provided.roles);
    } finally {
      await server.stop();
    }
  };
  try {
    await createTemplate(provided);
    return { provided, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function startServer(): Promise<Server> {
  const url = process.env['TEST_DATABASE_URL'];
  if (url) return { url, description: 'TEST_DATABASE_URL', stop: async () => {} };
  const container = await startPostgresContainer(SETTINGS);
  if (container === undefined) return startEmbedded();
  return { ...container, url: container.superuserUrl };
}

async function startEmbedded(): Promise<Server> {
  await removeAbandoned();
  const dataDir = await mkdtemp(join(tmpdir(), SCRATCH_PREFIX));
  const postgres = await startEmbeddedPostgres({ dataDir, settings: SETTINGS });
  return {
    url: postgres.superuserUrl,
    description: `embedded, pid ${postgres.pid}, ${dataDir}`,
    async stop() {
      await postgres.stop();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

/** Ends and removes the servers of test runs that were killed. Those of living runs are locked. */
async function removeAbandoned(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    const dataDir = join(tmpdir(), name);
    const clusterDir = join(dataDir, 'postgres');
    if (!name.startsWith(SCRATCH_PREFIX) || !existsSync(clusterDir)) continue;
    if ((await stat(dataDir)).uid !== process.getuid?.()) continue;
    const lock = await lockDataDir(dataDir).catch(() => null);
    if (lock === null) continue;
    await stopLeftovers(clusterDir, { fastMs: 0, immediateMs: 5000 }, () => {});
    await rm(dataDir, { recursive: true, force: true });
    await lock.release();
  }
}

async function mayMakeRoles(url: string): Promise<boolean> {
  const rows = await onServer(url, [
    `select rolname as name from pg_roles where rolname = current_user and rolsuper`,
  ]);
  return rows.length > 0;
}

async function createTemplate({ adminUrl, template, roles }: TestPostgres): Promise<void> {
  if (roles !== undefined) await createTestRoles(adminUrl, roles);
  const owner = roles === undefined ? '' : ' owner broker_owner';
  await onServer(adminUrl, [`create database ${template}${owner}`]);
  const databaseUrl = new URL(adminUrl);
  databaseUrl.pathname = `/${template}`;
  if (roles !== undefined) {
    databaseUrl.username = `${roles.prefix}_owner`;
    databaseUrl.password = roles.password;
  }
  const { migrate } = await import('#db/migrate.ts');
  await migrate({ databaseUrl: databaseUrl.href });
  // `create database … template` fails while anybody is connected to the template.
  await onServer(adminUrl, [`alter database ${template} allow_connections false`]);
}

async function dropDatabases({ adminUrl, prefix }: TestPostgres): Promise<void> {
  const names = await onServer(adminUrl, [
    `select datname as name from pg_database where starts_with(datname, '${prefix}')`,
  ]);
  await onServer(
    adminUrl,
    names.map((row) => `drop database ${row.name} with (force)`),
  );
}

/** Runs statements in order on one connection; the rows (names) of the last. */
async function onServer(url: string, statements: readonly string[]): Promise<{ name: string }[]> {
  const client = new pg.Client({ connectionString: url, application_name: 'broker-test-setup' });
  await client.connect();
  try {
    let rows: { name: string }[] = [];
    for (const statement of statements)
      ({ rows } = await client.query<{ name: string }>(statement));
    return rows;
  } finally {
    await client.end();
  }
}
