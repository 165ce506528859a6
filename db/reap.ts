import { sql } from 'kysely';
import type { Database } from './client.ts';

export interface Reaped {
  readonly expired_events: number;
  readonly dead_events: number;
  /** Subscriptions that have something to claim again. */
  readonly woken: number[];
  /** The limit was reached. */
  readonly more: boolean;
  /** Of which subscriptions events died, and how many of each. */
  readonly dead_subscription_ids: number[];
  readonly dead_counts: number[];
  /** The last deadline that was seen; null when there was none. */
  readonly mark: string | null;
}

/** Of a call that took nothing back. */
export const nothingReaped: Omit<Reaped, 'mark'> = {
  expired_events: 0,
  dead_events: 0,
  woken: [],
  more: false,
  dead_subscription_ids: [],
  dead_counts: [],
};

/** Topics with leases past their deadline; `since` is a mark on the deadline, or '-infinity'. */
export async function overdueTopics(db: Database, since: string): Promise<number[]> {
  const { rows } = await sql<{
    id: number;
  }>`select overdue_topics as id from broker.overdue_topics(${since}::timestamptz)`.execute(db);
  return rows.map((row) => row.id);
}

/** Takes back up to `limit` leases of one topic that ran out. Throws `term_over` when `term` is not the leader's any more. */
export async function reap(
  db: Database,
  topicId: number,
  term: string,
  options: { readonly limit: number; readonly since: string },
): Promise<Reaped> {
  const { rows } =
    await sql<Reaped>`select * from broker.reap(${topicId}, ${term}::bigint, ${options.limit}::int,
    ${options.since}::timestamptz)`.execute(db);
  return rows[0] ?? { ...nothingReaped, mark: null };
}

/** The subscriptions of all topics, or of one, that have something due since `since`, and when the first of it was. */
export async function dueSubscriptions(
  db: Database,
  since: string,
  topicId?: number,
): Promise<{ topic_id: number; subscription_id: number; due_at: string }[]> {
  const { rows } = await sql<{ topic_id: number; subscription_id: number; due_at: string }>`
    select t.id as topic_id, d.subscription_id, d.due_at
      from broker.topic t cross join lateral broker.due(t.id, ${since}::timestamptz) d
     where t.state = 'active' ${topicId === undefined ? sql`` : sql`and t.id = ${topicId}`}`.execute(
    db,
  );
  return rows;
}
