import { sql } from 'kysely';
import type { Database } from './client.ts';

/** The database's clock, so many milliseconds ago. */
export async function clockBefore(db: Database, ms = 0): Promise<string> {
  const { rows } = await sql<{ at: string }>`
    select clock_timestamp() - ${ms} * interval '1 millisecond' as at`.execute(db);
  return rows[0]?.at ?? '-infinity';
}
