import { sql } from 'kysely';
import type { Database } from './client.ts';
import { faultOf } from './errors.ts';
import { ensurePartitions } from './partitions.ts';

export interface Redriven {
  /** 0 where nothing of the job is left, and where its rate allows nothing yet. */
  readonly redriven: number;
  /** Nothing of the job is left. */
  readonly finished: boolean;
  /** The subscription that has something to claim; null where nothing was redriven. */
  readonly woken: number | null;
}

/**
 * Publishes up to `limit` (<= 100) dead letters of a job again, or as many as its rate allows. Throws `term_over` when `term` is not the leader's any more.
 * Ids that exist already and a span without a partition are met once with another try, as in a publish.
 */
export async function redrive(
  db: Database,
  topicId: number,
  term: string,
  options: { readonly jobId: string; readonly limit: number },
): Promise<Redriven> {
  const { jobId, limit } = options;
  const once = async (): Promise<Redriven> => {
    const { rows } = await sql<Redriven>`select redriven, finished, woken
      from broker.redrive(${topicId}, ${term}::bigint, ${jobId}::bigint, ${limit}::int)`.execute(
      db,
    );
    return rows[0] ?? { redriven: 0, finished: true, woken: null };
  };
  try {
    return await once();
  } catch (error) {
    const fault = faultOf(error);
    if (fault === 'missing_partition') await ensurePartitions(db);
    else if (fault !== 'conflict') throw error;
    return once();
  }
}

export interface UnfinishedJob {
  readonly id: string;
  readonly topic_id: number;
  readonly subscription_id: number;
  /** Its subscription was deleted since, so that nobody would receive anything. */
  readonly is_orphan: boolean;
}

/** Jobs of this kind that have something left to do, oldest first. */
export async function unfinishedRedrives(db: Database): Promise<UnfinishedJob[]> {
  return db
    .selectFrom('job as j')
    .innerJoin('subscription as s', 's.id', 'j.subscription_id')
    .select(['j.id', 'j.topic_id', 'j.subscription_id'])
    .select(sql<boolean>`s.state = 'deleted'`.as('is_orphan'))
    .where(sql<boolean>`j.state in ('waiting', 'running')`)
    .where('j.type', '=', 'redrive')
    .orderBy('j.id')
    .limit(100)
    .execute();
}

/** Ends a job that cannot be done. */
export async function failJob(db: Database, jobId: string, error: string): Promise<void> {
  await db
    .updateTable('job')
    .set({
      state: 'failed',
      error,
      updated_at: sql<string>`clock_timestamp()`,
      finished_at: sql<string>`clock_timestamp()`,
    })
    .where('id', '=', jobId)
    .where('state', 'in', ['waiting', 'running'])
    .execute();
}
