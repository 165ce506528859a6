import { sql } from 'kysely';
import type { Database } from './client.ts';
import type { SubscriptionState, SubscriptionType } from './schema.ts';

/** A subscription by the last sample. */
export interface SampledSubscription {
  readonly topic: string;
  readonly subscription: string;
  readonly type: SubscriptionType;
  readonly state: SubscriptionState;
  readonly waiting_events: number;
  readonly leased_events: number;
  readonly dead_letters: number;
  /** How late the first event is that is due and waits; null when none does. */
  readonly oldest_waiting_seconds: number | null;
  /** Of its topic. */
  readonly max_backlog: number;
}

/**
 * What subscriptions are looked for.
 * - `most_waiting`: all of them.
 * - `full`: the fullest of a topic whose producers must wait.
 * - `late`: active, and the first event has been due for longer than `lateSeconds`.
 * - `push_due`: active and pushed, and something has been due for longer than `pushDueSeconds`.
 * - `halted`: paused or disabled, and something waits.
 * - `dead`: has dead letters.
 */
export const extremeKinds = ['most_waiting', 'full', 'late', 'push_due', 'halted', 'dead'] as const;

export type ExtremeKind = (typeof extremeKinds)[number];

export interface Extreme {
  /** How many subscriptions there are of this kind. */
  readonly total: number;
  /** The first of them: those with most of what makes the kind. */
  readonly first: readonly SampledSubscription[];
}

export interface ExtremesOptions {
  /** Subscriptions of each kind at most. */
  readonly limit: number;
  readonly lateSeconds: number;
  readonly pushDueSeconds: number;
}

type Row = SampledSubscription & { readonly kind: ExtremeKind; readonly total: number };

/** The subscriptions that an operator should see first. It reads the last sample once, never the queue. */
export async function readBacklogExtremes(
  db: Database,
  { limit, lateSeconds, pushDueSeconds }: ExtremesOptions,
): Promise<Readonly<Record<ExtremeKind, Extreme>>> {
  const { rows } = await sql<Row>`
    with sampled as materialized (
      select t.name as topic, s.name as subscription, s.type, s.state, b.waiting_events::float8 as waiting_events,
          b.leased_events::float8 as leased_events, b.dead_letters::float8 as dead_letters, t.max_backlog,
          case when b.oldest_waiting_at is not null
            then greatest(0, extract(epoch from now.at - b.oldest_waiting_at))::float8 end as oldest_waiting_seconds,
          c.counts and b.waiting_events >= t.max_backlog
            and row_number() over (partition by b.topic_id order by c.counts desc, b.waiting_events desc) = 1 as is_full
        from (select clock_timestamp() as at offset 0) now
        cross join broker.backlog_sample b
        join broker.subscription s on s.id = b.subscription_id and s.state <> 'deleted'
        join broker.topic t on t.id = b.topic_id
        cross join lateral (select s.state = 'active' and s.backpressure as counts) c
    ), ranked as (
      select k.kind, (count(*) over (partition by k.kind))::int as total,
          row_number() over (partition by k.kind order by k.weight desc, m.topic, m.subscription) as place, m.*
        from sampled m
        cross join lateral (values
          ('most_waiting', true, m.waiting_events),
          ('full', m.is_full, m.waiting_events),
          ('late', m.state = 'active' and m.oldest_waiting_seconds > ${lateSeconds}::float8, m.oldest_waiting_seconds),
          ('push_due', m.state = 'active' and m.type = 'push' and m.oldest_waiting_seconds > ${pushDueSeconds}::float8,
            m.oldest_waiting_seconds),
          ('halted', m.state <> 'active' and m.waiting_events > 0, m.waiting_events),
          ('dead', m.dead_letters > 0, m.dead_letters)
        ) k (kind, applies, weight)
       where k.applies
    )
    select kind, total, topic, subscription, type, state, waiting_events, leased_events, dead_letters,
        oldest_waiting_seconds, max_backlog
      from ranked where place <= ${limit} order by kind, place`.execute(db);
  const of = (kind: ExtremeKind): Extreme => {
    const found = rows.filter((row) => row.kind === kind);
    const first = found.map(({ kind: _kind, total: _total, ...subscription }) => subscription);
    return { total: found[0]?.total ?? 0, first };
  };
  return {
    most_waiting: of('most_waiting'),
    full: of('full'),
    late: of('late'),
    push_due: of('push_due'),
    halted: of('halted'),
    dead: of('dead'),
  };
}
