import { sql } from 'kysely';
import type { Database } from '#db/client.ts';

/** A pair of partitions whose time is over, as a broker has that was left running. */
export interface PastPartition {
  readonly event_partition: string;
  readonly attempt_partition: string;
  /** Of a publish that was made in it. */
  readonly publish_id: string;
}

/** Makes the pair of the class of one hour that was current so many minutes ago. */
export async function aPastPartition(db: Database, minutesAgo: number): Promise<PastPartition> {
  const { rows } = await sql<{ name: string; low: string; high: string }>`
    select to_char(s.start at time zone 'UTC', '"1h_"YYYYMMDD"t"HH24MI') as name,
        broker.id_floor(s.start) as low, broker.id_floor(s.start + interval '10 minutes') as high
      from (select date_bin('10 minutes', clock_timestamp() - ${minutesAgo} * interval '1 minute', '2025-01-01Z') as start) s`.execute(
    db,
  );
  const { name, low, high } = rows[0]!;
  await sql`select broker.add_partition('event', ${name}, 'id', 1::smallint, ${low}::bigint << 10, ${high}::bigint << 10),
    broker.add_partition('attempt', ${name}, 'publish_id', 1::smallint, ${low}::bigint, ${high}::bigint)`.execute(
    db,
  );
  const publish_id = String(BigInt(low) + 5n);
  return { event_partition: `event_${name}`, attempt_partition: `attempt_${name}`, publish_id };
}

/** Puts a publish of so many events into it, and the entry of each subscription that would have matched. */
export async function publishInto(
  db: Database,
  partition: PastPartition,
  publish: {
    readonly topicId: number;
    readonly subscriptionIds: readonly number[];
    readonly events: number;
  },
): Promise<void> {
  const { topicId, subscriptionIds, events } = publish;
  await sql`insert into broker.event (id, published_at, expires_at, topic_id, retention_class, type, data)
    select (${partition.publish_id}::bigint << 10) + o, t.at, t.at + interval '1 hour', ${topicId}, 1, 'order.created',
        json_build_object('number', o)
      from generate_series(0, ${events}::int - 1) o, (select broker.id_time(${partition.publish_id}::bigint) as at) t`.execute(
    db,
  );
  await sql`insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at, retention_class)
    select ${topicId}, ${partition.publish_id}::bigint, s.id, array(select o::smallint from generate_series(0, ${events}::int - 1) o),
        ${events}::int, 100, broker.id_time(${partition.publish_id}::bigint), 1
      from unnest(${[...subscriptionIds]}::int[]) s(id)`.execute(db);
}
