import { setTimeout as delay } from 'node:timers/promises';
import { sql } from 'kysely';
import pg from 'pg';
import type { Database } from './client.ts';
import { faultOf } from './errors.ts';
import { knownDefinitions, knownMigrations } from './migrate.ts';

export type SchemaVersion =
  | { readonly status: 'current' }
  /** Migrations of this release are missing: `migrate` has not run yet. */
  | { readonly status: 'older'; readonly missing: readonly string[] }
  /** The database has gone on without this release. */
  | { readonly status: 'incompatible'; readonly detail: string };

/** Compares the database with what this release knows. A database that is newer is fine, as long as it says so. */
export async function checkSchema(db: Database): Promise<SchemaVersion> {
  try {
    return await compareSchema(db);
  } catch (error) {
    // a table that is not there yet, or that somebody has dropped between two looks
    const isMissing = error instanceof pg.DatabaseError && error.code === '42P01';
    if (!isMissing) throw error;
    return { status: 'older', missing: await knownMigrations() };
  }
}

async function compareSchema(db: Database): Promise<SchemaVersion> {
  const known = await knownMigrations();
  const missing = await findMissing(db, known);
  if (missing.length > 0) return { status: 'older', missing };
  const compatibility = await db.selectFrom('compatibility').select('minimum_migration').execute();
  const minimum = compatibility[0]?.minimum_migration ?? '';
  const last = known.at(-1) ?? '';
  if (minimum > last) {
    const detail = `the database needs a release that knows migration ${minimum}; this one knows up to ${last}`;
    return { status: 'incompatible', detail };
  }
  return { status: 'current' };
}

/** Functions come after all migrations; an older one under the same name does, as its signature is the same. */
async function findMissing(db: Database, known: readonly string[]): Promise<string[]> {
  const applied = await sql<{ name: string }>`select name from broker.kysely_migration`.execute(db);
  const done = new Set(applied.rows.map((row) => row.name));
  const missing = known.filter((name) => !done.has(name));
  if (missing.length > 0) return missing;
  const definitions = await db.selectFrom('definition').select('path').execute();
  const defined = new Set(definitions.map((row) => row.path));
  return (await knownDefinitions()).filter((path) => !defined.has(path));
}

export interface WaitForSchemaOptions {
  readonly signal: AbortSignal;
  /** Why there is something to wait for; told again only when it is another reason. */
  readonly onWaiting?: (reason: string, error?: unknown) => void;
  /** Longest wait between two looks (2000). */
  readonly lookMs?: number;
}

/** The database was migrated by a later release, which has taken away something that this one needs. */
export class IncompatibleSchema extends Error {
  override name = 'IncompatibleSchema';
}

/**
 * Waits until the database is there and migrated. Throws `IncompatibleSchema` when waiting is no use, and the signal's
 * reason when it is aborted.
 */
export async function waitForSchema(db: Database, options: WaitForSchemaOptions): Promise<void> {
  const { signal, onWaiting, lookMs = 2000 } = options;
  let told: string | undefined;
  for (let look = 0; ; look += 1) {
    signal.throwIfAborted();
    const { reason, error } = await whyWait(db);
    if (reason === undefined) return;
    if (reason !== told) onWaiting?.(reason, error);
    told = reason;
    await delay(Math.min(lookMs, 100 * 2 ** Math.min(look, 10)), undefined, { signal });
  }
}

async function whyWait(db: Database): Promise<{ reason?: string; error?: unknown }> {
  try {
    const version = await checkSchema(db);
    if (version.status === 'incompatible') throw new IncompatibleSchema(version.detail);
    if (version.status === 'current') return {};
    return { reason: `the database is not migrated yet, it lacks ${version.missing.join(', ')}` };
  } catch (error) {
    if (faultOf(error) === 'defect') throw error;
    return { reason: 'the database does not answer', error };
  }
}
