import { sql } from 'kysely';
import type { Database } from './client.ts';
import type { JobState, JobType } from './schema.ts';

/** A piece of work that the leader does bit by bit. */
export interface JobRow {
  readonly id: string;
  readonly type: JobType;
  readonly state: JobState;
  readonly topic: string;
  readonly subscription: string;
  readonly total: number;
  readonly done: number;
  /** Null: as fast as it goes. */
  readonly rate_per_second: number | null;
  readonly error: string | null;
  readonly created_at: string;
  readonly updated_at: string;
  readonly finished_at: string | null;
}

export type CreateJobResult =
  | { readonly status: 'created'; readonly id: string }
  | { readonly status: 'subscription_not_found' }
  /** One is under way for this subscription. */
  | { readonly status: 'unfinished'; readonly id: string };

/**
 * Asks for the dead letters that a subscription has now to be put back to its queue, `ratePerSecond` (1 to 100,000) at most
 * where that is given. Two calls at once make one job.
 */
export async function createRedriveJob(
  db: Database,
  topicId: number,
  subscriptionId: number,
  ratePerSecond?: number,
): Promise<CreateJobResult> {
  const { rows } = await sql<{ job_id: string; created: boolean }>`select job_id, created
    from broker.begin_redrive(${topicId}, ${subscriptionId}, ${ratePerSecond ?? null}::int)`.execute(
    db,
  );
  const job = rows[0];
  if (job === undefined) return { status: 'subscription_not_found' };
  return { status: job.created ? 'created' : 'unfinished', id: job.job_id };
}

/** A job by its id; also one of a subscription that was deleted since. */
export async function findJob(db: Database, id: string): Promise<JobRow | undefined> {
  return db
    .selectFrom('job as j')
    .innerJoin('subscription as s', 's.id', 'j.subscription_id')
    .innerJoin('topic as t', 't.id', 'j.topic_id')
    .select(['j.id', 'j.type', 'j.state', 't.name as topic', 's.name as subscription'])
    .select(['j.total', 'j.done', 'j.rate_per_second', 'j.error', 'j.created_at', 'j.updated_at'])
    .select('j.finished_at')
    .where('j.id', '=', id)
    .executeTakeFirst();
}
