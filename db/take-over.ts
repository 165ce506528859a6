import { sql } from 'kysely';
import type { Database } from './client.ts';
import { nothingReaped, type Reaped } from './reap.ts';

/**
 * The workers whose leases are to be taken over: those that are gone now, and those that were marked as gone in the last
 * `lookBackMs`, because a slow claim of theirs may be committed that late. Throws `term_over`.
 */
export async function findGoneWorkers(
  db: Database,
  term: string,
  lookBackMs: number,
): Promise<string[]> {
  const { rows } = await sql<{ instance: string }>`
    select find_gone_workers as instance from broker.find_gone_workers(${term}::bigint, ${lookBackMs}::bigint)`.execute(
    db,
  );
  return rows.map((row) => row.instance);
}

/** The topics in which any of these workers has leases. */
export async function topicsLeasedBy(db: Database, workers: readonly string[]): Promise<number[]> {
  const { rows } = await sql<{ id: number }>`
    select topics_leased_by as id from broker.topics_leased_by(${[...workers]}::text[])`.execute(
    db,
  );
  return rows.map((row) => row.id);
}

/** Takes back up to `limit` leases of a gone worker in one topic. Throws `term_over`. */
export async function takeOver(
  db: Database,
  topicId: number,
  term: string,
  options: { readonly worker: string; readonly limit: number },
): Promise<Omit<Reaped, 'mark'>> {
  const { rows } = await sql<Omit<Reaped, 'mark'>>`
    select * from broker.take_over(${topicId}, ${term}::bigint, ${options.worker}, ${options.limit}::int)`.execute(
    db,
  );
  return rows[0] ?? nothingReaped;
}
