import { sql } from 'kysely';
import type { Database } from './client.ts';

/** Deletes a chunk of what deleted subscriptions left behind; returns how many rows it was. */
export async function purgeDeleted(db: Database, term: string, limit: number): Promise<number> {
  const { rows } = await sql<{ purged: number }>`
    select broker.purge_deleted(${term}::bigint, ${limit}::int) as purged`.execute(db);
  return rows[0]?.purged ?? 0;
}

/** Deletes a chunk of the idempotency keys whose time is over; returns how many. */
export async function purgeIdempotencyKeys(
  db: Database,
  term: string,
  limit: number,
): Promise<number> {
  const { rows } = await sql<{ purged: number }>`
    select broker.purge_idempotency_keys(${term}::bigint, ${limit}::int) as purged`.execute(db);
  return rows[0]?.purged ?? 0;
}
