import { sql } from 'kysely';
import type { Database } from './client.ts';

/** Makes the partitions of now and of the next two spans, of one retention class (hours) or of all that topics use. */
export async function ensurePartitions(db: Database, retentionClass?: number): Promise<number> {
  const { rows } = await sql<{ made: number }>`
    select broker.ensure_partitions(${retentionClass ?? null}::smallint) as made`.execute(db);
  return rows[0]?.made ?? 0;
}

export interface ExpiredPartition {
  readonly event_partition: string;
  readonly attempt_partition: string;
  readonly retention_class: number;
  readonly starts_at: string;
  readonly ends_at: string;
  readonly attached: boolean;
  readonly detach_pending: boolean;
}

/** The pairs whose last event is older than their class keeps anything, oldest first. */
export async function expiredPartitions(db: Database): Promise<ExpiredPartition[]> {
  const { rows } = await sql<ExpiredPartition>`
    select event_partition, attempt_partition, retention_class, starts_at, ends_at, attached, detach_pending
      from broker.partition
     where ends_at + retention_class * interval '1 hour' < clock_timestamp()
     order by ends_at, retention_class`.execute(db);
  return rows;
}

export interface ExpiredEntries {
  readonly topic_id: number;
  readonly subscription_id: number;
  readonly dropped: number;
  readonly dead: number;
}

/**
 * Ends what still refers to a span of events, by each subscription's policy; one chunk of at most `limit` entries a call.
 * An empty answer says that nothing is left.
 */
export async function expireEntries(
  db: Database,
  term: string,
  partition: ExpiredPartition,
  limit: number,
): Promise<ExpiredEntries[]> {
  const { rows } = await sql<ExpiredEntries>`
    select topic_id, subscription_id, dropped, dead from broker.expire_entries(${term}::bigint,
      ${partition.retention_class}::smallint, ${partition.starts_at}::timestamptz, ${partition.ends_at}::timestamptz,
      ${limit}::int)`.execute(db);
  return rows;
}

/**
 * Takes one pair of partitions out of their parents. CONCURRENTLY, and so by itself: a plain DROP would make publishers wait
 * behind any open reader. Repeatable: what a reader stood in the way of is finished the next time.
 */
export async function detachPartition(db: Database, partition: ExpiredPartition): Promise<void> {
  for (const parent of ['event', 'attempt'] as const) {
    const name = parent === 'event' ? partition.event_partition : partition.attempt_partition;
    const { rows } = await sql<{ pending: boolean }>`
      select i.inhdetachpending as pending from pg_inherits i where i.inhrelid = to_regclass(${`broker.${name}`})`.execute(
      db,
    );
    const attached = rows[0];
    if (attached === undefined) continue;
    const how = sql.raw(attached.pending ? 'finalize' : 'concurrently');
    await sql`alter table ${sql.table(`broker.${parent}`)} detach partition ${sql.table(`broker.${name}`)} ${how}`.execute(
      db,
    );
  }
}

/** Drops a detached pair. False where the queue still refers to it. */
export async function dropPartition(
  db: Database,
  term: string,
  partition: ExpiredPartition,
): Promise<boolean> {
  const { rows } = await sql<{ dropped: boolean }>`
    select broker.drop_partition(${term}::bigint, ${partition.retention_class}::smallint, ${partition.starts_at}::timestamptz,
      ${partition.ends_at}::timestamptz, ${partition.event_partition}, ${partition.attempt_partition}) as dropped`.execute(
    db,
  );
  return rows[0]?.dropped ?? false;
}
