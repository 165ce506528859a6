import type { Database } from './client.ts';
import { sql } from 'kysely';

/** A process as `broker.worker` shows it: one row per process of any kind. */
export interface ProcessInfo {
  readonly instance: string;
  readonly service: string;
  readonly version: string;
  readonly host: string;
  readonly pid: number;
}

/** Says that this process has started. */
export async function registerProcess(db: Database, info: ProcessInfo): Promise<void> {
  await db
    .insertInto('worker')
    .values({ ...info })
    .onConflict((conflict) =>
      conflict.column('instance').doUpdateSet({
        ...info,
        started_at: sql<string>`clock_timestamp()`,
        heartbeat_at: sql<string>`clock_timestamp()`,
      }),
    )
    .execute();
}

/** Says that this process lives; once a second. A row that was forgotten meanwhile is made again. */
export async function heartbeatProcess(db: Database, info: ProcessInfo): Promise<void> {
  await db
    .insertInto('worker')
    .values({ ...info })
    .onConflict((conflict) =>
      conflict.column('instance').doUpdateSet({ heartbeat_at: sql<string>`clock_timestamp()` }),
    )
    .execute();
}

/** Says that this process has ended in order. */
export async function unregisterProcess(db: Database, instance: string): Promise<void> {
  await db.deleteFrom('worker').where('instance', '=', instance).execute();
}

/** Removes the rows of processes that were last heard of so long ago; returns how many. */
export async function forgetProcesses(db: Database, olderThanMs = 3_600_000): Promise<number> {
  const { numDeletedRows } = await db
    .deleteFrom('worker')
    .where(
      'heartbeat_at',
      '<',
      sql<string>`clock_timestamp() - ${olderThanMs} * interval '1 millisecond'`,
    )
    .executeTakeFirst();
  return Number(numDeletedRows);
}
