import { sql } from 'kysely';
import type { Database } from './client.ts';

/** A topic whose producers must wait, and the subscription that is the furthest behind. */
export interface FullBacklog {
  readonly topic_id: number;
  readonly subscription: string;
  readonly waiting_events: number;
  readonly max_backlog: number;
}

export interface BacklogReading {
  /** Nobody has sampled for 5 seconds, or the clock was set back since. */
  readonly isStale: boolean;
  readonly full: readonly FullBacklog[];
}

/** The topics that are past their max_backlog by the last sample: one row of each, of its fullest subscription that counts. */
export async function readBacklog(db: Database): Promise<BacklogReading> {
  const { rows } = await sql<{ is_stale: boolean } & Nullable<FullBacklog>>`
    select g.sampled_at not between clock_timestamp() - interval '5 seconds' and clock_timestamp() as is_stale,
        f.topic_id, f.subscription, f.waiting_events, f.max_backlog
      from broker.backlog_sampling g
      left join (
        select distinct on (b.topic_id) b.topic_id, s.name as subscription, b.waiting_events::float8 as waiting_events, t.max_backlog
          from broker.backlog_sample b
          join broker.topic t on t.id = b.topic_id
          join broker.subscription s on s.id = b.subscription_id
         where b.waiting_events >= t.max_backlog and s.state = 'active' and s.backpressure
         order by b.topic_id, b.waiting_events desc
      ) f on true`.execute(db);
  const full = rows.filter(
    (row): row is { is_stale: boolean } & FullBacklog => row.topic_id !== null,
  );
  return { isStale: rows[0]?.is_stale ?? true, full };
}

/** Sums up the queue, unless somebody else does or has just done so. */
export async function sampleBacklog(db: Database): Promise<boolean> {
  const { rows } = await sql<{
    sampled: boolean;
  }>`select broker.sample_backlog() as sampled`.execute(db);
  return rows[0]?.sampled ?? false;
}

/** Counts the dead letters into the sample, for whoever looks at it. */
export async function countDeadLetters(db: Database): Promise<void> {
  await sql`select broker.count_dead_letters()`.execute(db);
}

type Nullable<Row> = { readonly [Key in keyof Row]: Row[Key] | null };
