import { sql } from 'kysely';
import type { Database } from '#db/client.ts';
import type { VerbDatabase } from './verbs.ts';

export interface ScheduleResult<A, B> {
  readonly first: A;
  readonly second: B;
  /** Whether the second call waited for the first one's transaction. */
  readonly waited: boolean;
}

/**
 * Two calls at once, in the style of PostgreSQL's isolation tester: the first runs inside a transaction that stays open,
 * the second runs on a connection of its own until it ends or is seen to wait for the first; then the first one ends.
 */
export async function schedule<A, B>(
  database: VerbDatabase,
  first: (db: Database) => Promise<A>,
  second: (db: Database) => Promise<B>,
  end: 'commit' | 'rollback' = 'commit',
): Promise<ScheduleResult<A, B>> {
  await using holder = database.another();
  await using runner = database.another();
  await using watcher = database.another();
  const trx = await holder.db.startTransaction().execute();
  const firstResult = await first(trx);
  const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(runner.db);
  const pid = rows[0]?.pid ?? 0;
  let ended = false;
  const running = second(runner.db).finally(() => (ended = true));
  running.catch(() => undefined);
  let waited = false;
  while (!ended && !waited) {
    const blocked = await sql<{
      waits: boolean;
    }>`select cardinality(pg_blocking_pids(${pid})) > 0 as waits`.execute(watcher.db);
    waited = blocked.rows[0]?.waits ?? false;
  }
  if (end === 'commit') await trx.commit().execute();
  else await trx.rollback().execute();
  return { first: firstResult, second: await running, waited };
}
