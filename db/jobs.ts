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
 * Asks for the dead letters that a subscription has now to be put back to its queue. The subscription's row is locked, so
 * that two calls at once make one job.
 */
export async function createRedriveJob(
  db: Database,
  topicId: number,
  subscriptionId: number,
): Promise<CreateJobResult> {
  return db.transaction().execute(async (transaction) => {
    const subscription = await transaction
      .selectFrom('subscription')
      .select('id')
      .where('id', '=', subscriptionId)
      .where('topic_id', '=', topicId)
      .where('state', '<>', 'deleted')
      .forNoKeyUpdate()
      .executeTakeFirst();
    if (subscription === undefined) return { status: 'subscription_not_found' };
    const unfinished = await transaction
      .selectFrom('job')
      .select('id')
      .where('subscription_id', '=', subscriptionId)
      .where(sql<boolean>`state in ('waiting', 'running')`)
      .limit(1)
      .executeTakeFirst();
    if (unfinished !== undefined) return { status: 'unfinished', id: unfinished.id };
    const { rows } = await sql<{ id: string }>`
      insert into broker.job (type, state, topic_id, subscription_id, last_dead_letter_id, total, finished_at)
      select 'redrive', case when count(*) = 0 then 'succeeded' else 'waiting' end::broker.job_state,
          ${topicId}, ${subscriptionId}, max(d.id), count(*)::int, case when count(*) = 0 then clock_timestamp() end
        from broker.dead_letter d
       where d.topic_id = ${topicId} and d.subscription_id = ${subscriptionId}
      returning id`.execute(transaction);
    return { status: 'created', id: rows[0]?.id ?? '' };
  });
}

/** A job by its id; also one of a subscription that was deleted since. */
export async function findJob(db: Database, id: string): Promise<JobRow | undefined> {
  return db
    .selectFrom('job as j')
    .innerJoin('subscription as s', 's.id', 'j.subscription_id')
    .innerJoin('topic as t', 't.id', 'j.topic_id')
    .select(['j.id', 'j.type', 'j.state', 't.name as topic', 's.name as subscription'])
    .select(['j.total', 'j.done', 'j.error', 'j.created_at', 'j.updated_at', 'j.finished_at'])
    .where('j.id', '=', id)
    .executeTakeFirst();
}
