import { type Selectable, sql } from 'kysely';
import type { Database } from './client.ts';
import type { AttemptOutcome, Event } from './schema.ts';

/** An event as it is kept. `data` and `extensions` are JSON text. */
export type StoredEvent = Omit<Selectable<Event>, 'topic_id' | 'id'> & {
  /** The broker's id. */
  readonly event_id: string;
};

export type DeliveryState = 'waiting' | 'leased' | 'acked' | 'dead' | 'expired';

/** One event on its way to one subscription. */
export interface Delivery {
  readonly subscription: string;
  readonly state: DeliveryState;
  /** Deliveries begun. */
  readonly attempts: number;
  /** Waiting: when it is due. */
  readonly available_at: string | null;
  /** Leased: until when. */
  readonly lease_expires_at: string | null;
  /** When the last attempt that has ended did so. */
  readonly last_attempt_at: string | null;
  readonly last_error: string | null;
  readonly dead_letter_id: string | null;
  /** Its attempts that have ended, oldest first; the last 100. */
  readonly history: readonly AttemptRow[];
}

/** How one try of a delivery ended. */
export interface AttemptRow {
  readonly attempt: number;
  readonly outcome: AttemptOutcome;
  readonly settled_at: string;
  /** The process that had the lease; null for a pull consumer. */
  readonly worker: string | null;
  /** Push: of the answer; null where none came. */
  readonly status: number | null;
  /** Push: how long the request took. */
  readonly duration_ms: number | null;
  readonly error: string | null;
  /** Push: the first bytes of the answer's body. */
  readonly response: Buffer | null;
}

const historyMax = 100;

// An id does not say how long its event is kept, so each class is probed; all of them are one index look-up each.
const retentionClasses = sql`array[1, 24, 168, 720, 2160, 8760]::smallint[]`;

/** One event by the broker's id (decimal digits); undefined when there is none, or none any more. */
export async function findEvent(
  db: Database,
  topicId: number,
  eventId: string,
): Promise<StoredEvent | undefined> {
  if (!isId(eventId)) return undefined;
  return db
    .selectFrom('event')
    .select(['id as event_id', 'retention_class', 'published_at', 'expires_at', 'origin_id'])
    .select(['type', 'ce_id', 'source', 'subject', 'time', 'datacontenttype', 'dataschema'])
    .select(['ordering_key', 'extensions', 'traceparent', 'tracestate', 'data', 'data_binary'])
    .where('topic_id', '=', topicId)
    .where(sql<boolean>`retention_class = any (${retentionClasses})`)
    .where('id', '=', eventId)
    .executeTakeFirst();
}

/** Whether a text is an id that the database can compare: decimal digits of at most 63 bits. */
export function isId(text: string): boolean {
  return /^(0|[1-9]\d{0,18})$/.test(text) && BigInt(text) < 1n << 63n;
}

/**
 * What became of an event, for each subscription that got it and still exists. An event that is neither in the queue, nor
 * dead, nor acked was dropped when its retention ended. Undefined when there is no such event.
 */
export async function listDeliveries(
  db: Database,
  topicId: number,
  eventId: string,
): Promise<Delivery[] | undefined> {
  const event = await findEvent(db, topicId, eventId);
  if (event === undefined) return undefined;
  const publishId = (BigInt(eventId) >> 10n).toString();
  const ordinal = Number(BigInt(eventId) & 1023n);
  const { rows } = await sql<Omit<Delivery, 'history'> & { subscription_id: number }>`
    select s.id as subscription_id, s.name as subscription,
        case
          when q.found and q.lease_expires_at is null then 'waiting'
          when q.found then 'leased'
          when d.id is not null then 'dead'
          when a.outcome in ('acked', 'dead') then a.outcome
          else 'expired' end as state,
        coalesce(q.attempt, d.attempts, a.attempt, 0) as attempts,
        case when q.lease_expires_at is null then q.available_at end as available_at,
        q.lease_expires_at,
        a.settled_at as last_attempt_at,
        coalesce(d.last_error, a.error) as last_error,
        d.id as dead_letter_id
      from broker.subscription s
      left join lateral (
        select true as found, q.attempt, q.available_at, q.lease_expires_at
          from broker.queue q
         where q.topic_id = ${topicId} and q.publish_id = ${publishId}::bigint and q.subscription_id = s.id
           and ${ordinal}::smallint = any (q.ordinals)
         limit 1
      ) q on true
      left join lateral (
        select d.id, d.attempts, d.last_error
          from broker.dead_letter d
         where d.topic_id = ${topicId} and d.event_id = ${eventId}::bigint and d.subscription_id = s.id
         order by d.id desc limit 1
      ) d on true
      left join lateral (
        select max(a.attempt) as attempt, max(a.settled_at) as settled_at,
            (array_agg(a.outcome::text order by a.settled_at desc, a.generation desc))[1] as outcome,
            (array_agg(a.error order by a.settled_at desc) filter (where a.error is not null))[1] as error
          from broker.attempt a
         where a.topic_id = ${topicId} and a.retention_class = ${event.retention_class}::smallint
           and a.publish_id = ${publishId}::bigint and a.subscription_id = s.id
           and ${ordinal}::smallint = any (a.ordinals)
      ) a on true
     where s.topic_id = ${topicId} and s.state <> 'deleted'
       and (q.found or d.id is not null or a.outcome is not null)
     order by s.name`.execute(db);
  const histories = await readHistories(db, topicId, {
    retentionClass: event.retention_class,
    publishId,
    ordinal,
    subscriptionIds: rows.map((row) => row.subscription_id),
  });
  return rows.map(({ subscription_id: id, ...delivery }) => {
    return { ...delivery, history: histories.get(id) ?? [] };
  });
}

interface HistoryOf {
  readonly retentionClass: number;
  readonly publishId: string;
  readonly ordinal: number;
  readonly subscriptionIds: readonly number[];
}

/** One short look along the attempts' primary key per subscription. */
async function readHistories(
  db: Database,
  topicId: number,
  { retentionClass, publishId, ordinal, subscriptionIds }: HistoryOf,
): Promise<Map<number, AttemptRow[]>> {
  const { rows } = await sql<AttemptRow & { subscription_id: number }>`
    select s.id as subscription_id, a.attempt, a.outcome, a.settled_at, a.worker, a.status, a.duration_ms, a.error, a.response
      from unnest(${subscriptionIds}::int[]) s(id)
      cross join lateral (
        select a.*
          from broker.attempt a
         where a.topic_id = ${topicId} and a.retention_class = ${retentionClass}::smallint
           and a.publish_id = ${publishId}::bigint and a.subscription_id = s.id
           and ${ordinal}::smallint = any (a.ordinals)
         order by a.settled_at desc, a.generation desc
         limit ${historyMax}
      ) a
     order by a.settled_at, a.generation`.execute(db);
  const histories = new Map<number, AttemptRow[]>();
  for (const { subscription_id: id, ...attempt } of rows) {
    const history = histories.get(id) ?? [];
    histories.set(id, history);
    history.push(attempt);
  }
  return histories;
}
