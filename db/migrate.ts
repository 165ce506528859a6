import { createHash } from 'node:crypto';
import { readFile, readdir } from 'node:fs/promises';
import { Kysely, PostgresDialect, sql } from 'kysely';
import { Migrator, type Migration } from 'kysely/migration';
import pg from 'pg';
import { applyGrants } from './grants.ts';

export interface MigrateOptions {
  /** A direct connection (no transaction pooler) of the role that owns the schema. */
  readonly databaseUrl: string;
  readonly onProgress?: (line: string) => void;
}

const folder = new URL('./', import.meta.url);
// any constant: two runs wait for each other, whatever release they are of
const lockKey = 7_362_001;

/** The migrations that this release knows, oldest first, by name (`0001_topics`). */
export async function knownMigrations(): Promise<string[]> {
  const files = await readdir(new URL('migrations/', folder));
  return files
    .filter((file) => file.endsWith('.sql'))
    .map((file) => file.replace(/\.sql$/, ''))
    .toSorted();
}

/** The functions and views that this release knows, by the path of their files (`functions/claim.sql`). */
export async function knownDefinitions(): Promise<string[]> {
  return [...(await sqlFiles('functions')), ...(await sqlFiles('views'))];
}

/**
 * Brings the database to this release: the pending migrations one by one, each committed alone, then every function and
 * view whose file changed, and what the roles of the processes may (grants/), where there are such roles. Under one lock around
 * the whole run, so any number may be started at once. Repeatable.
 */
export async function migrate(options: MigrateOptions): Promise<void> {
  const say = options.onProgress ?? (() => undefined);
  // one connection: the lock is the session's
  const pool = new pg.Pool({
    connectionString: options.databaseUrl,
    max: 1,
    application_name: 'broker-migrate',
  });
  pool.on('error', () => undefined);
  // one that breaks between two statements fails the next of them, not the process
  pool.on('connect', (client) => client.on('error', () => undefined));
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  try {
    await sql`select pg_advisory_lock(${lockKey})`.execute(db);
    await sql`create schema if not exists broker`.execute(db);
    const newer = await runMigrations(db, say);
    // Its functions and views belong to its schema, and are for the releases before it as well.
    if (newer.length > 0)
      say(`left as it is: the database is of a newer release (${newer.join(', ')})`);
    else await applyDefinitions(db, say);
    await sql`select pg_advisory_unlock(${lockKey})`.execute(db);
  } finally {
    await db.destroy();
  }
}

/** Runs what is pending; resolves with the migrations that the database has and this release does not know. */
async function runMigrations(db: Kysely<unknown>, say: (line: string) => void): Promise<string[]> {
  const names = await knownMigrations();
  const migrator = new Migrator({
    db,
    migrationTableSchema: 'broker',
    allowUnorderedMigrations: true,
    provider: {
      getMigrations: async () => Object.fromEntries(await Promise.all(names.map(loadMigration))),
    },
  });
  const done = new Set(
    (await migrator.getMigrations()).filter((each) => each.executedAt).map((each) => each.name),
  );
  for (const name of names) {
    if (done.has(name)) continue;
    const { error } = await migrator.migrateTo(name, {
      disableTransactions: name.endsWith('.notx'),
    });
    if (error !== undefined) throw new Error(`migration ${name} failed`, { cause: error });
    say(`migrated ${name}`);
  }
  const { rows } = await sql<{
    name: string;
  }>`select name from broker.kysely_migration where not name = any(${names}::text[]) order by name`.execute(
    db,
  );
  return rows.map((row) => row.name);
}

async function loadMigration(name: string): Promise<[string, Migration]> {
  const text = await readFile(new URL(`migrations/${name}.sql`, folder), 'utf8');
  const up = async (db: Kysely<unknown>): Promise<void> => {
    await sql.raw(text).execute(db);
  };
  return [name, { up }];
}

/** All of them in one transaction, so that no call sees one half of a change. */
async function applyDefinitions(db: Kysely<unknown>, say: (line: string) => void): Promise<void> {
  const files = await knownDefinitions();
  const known = await sql<{
    path: string;
    hash: string;
  }>`select path, hash from broker.definition`.execute(db);
  const hashes = new Map(known.rows.map((row) => [row.path, row.hash]));
  await db.transaction().execute(async (trx) => {
    await sql`set local lock_timeout = '5s'`.execute(trx);
    // functions name each other in any order
    await sql`set local check_function_bodies = off`.execute(trx);
    for (const path of files) {
      const text = await readFile(new URL(path, folder), 'utf8');
      const hash = createHash('sha256').update(text).digest('hex');
      if (hashes.get(path) === hash) continue;
      await sql.raw(text).execute(trx);
      await sql`insert into broker.definition (path, hash) values (${path}, ${hash})
        on conflict (path) do update set hash = excluded.hash, applied_at = clock_timestamp()`.execute(
        trx,
      );
      say(`defined ${path}`);
    }
    await applyGrants(trx, say);
  });
}

async function sqlFiles(name: string): Promise<string[]> {
  const files = await readdir(new URL(`${name}/`, folder)).catch(() => []);
  return files
    .filter((file) => file.endsWith('.sql'))
    .toSorted()
    .map((file) => `${name}/${file}`);
}
