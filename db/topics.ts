import { type Selectable, sql } from 'kysely';
import type { Database } from './client.ts';
import { ensurePartitions } from './partitions.ts';
import type { Topic } from './schema.ts';
import { announceChange } from './wakeups.ts';

/** What of a topic can be set; a PUT sets all of it. */
export interface TopicSettings {
  readonly retention_seconds: number;
  readonly deduplication_seconds: number;
  readonly deduplicate_event_ids: boolean;
  readonly max_backlog: number;
}

export type TopicRow = Pick<
  Selectable<Topic>,
  'id' | 'name' | 'state' | 'created_at' | 'updated_at' | keyof TopicSettings
>;

/** A page of what is sorted by name. */
export interface NamePage {
  readonly limit: number;
  /** The last name of the page before. */
  readonly after?: string | undefined;
  /** Only topics whose name fits one of these patterns ('*' stands for any characters). */
  readonly patterns?: readonly string[] | undefined;
}

const columns = [
  'id',
  'name',
  'state',
  'retention_seconds',
  'deduplication_seconds',
  'deduplicate_event_ids',
  'max_backlog',
  'created_at',
  'updated_at',
] as const;

/**
 * Creates a topic, or replaces the settings of the one that has this name. Its partitions are there before it is, so that
 * the first publish need not make them. Two calls at once: one creates, the other replaces.
 */
export async function putTopic(
  db: Database,
  name: string,
  settings: TopicSettings,
): Promise<{ readonly status: 'created' | 'updated'; readonly topic: TopicRow }> {
  const { rows } = await sql<{ retention_class: number }>`
    select broker.retention_class_of(${settings.retention_seconds}::float8) as retention_class`.execute(
    db,
  );
  const values = { ...settings, retention_class: rows[0]?.retention_class ?? 8760 };
  await ensurePartitions(db, values.retention_class);
  return db.transaction().execute(async (transaction) => {
    const { created, ...topic } = await transaction
      .insertInto('topic')
      .values({ name, ...values })
      .onConflict((conflict) =>
        conflict
          .column('name')
          .where(sql<boolean>`state <> 'deleted'`)
          .doUpdateSet({ ...values, updated_at: sql`clock_timestamp()` }),
      )
      .returning(columns)
      // a row that this statement made has never been locked nor updated
      .returning(sql<boolean>`xmax = 0`.as('created'))
      .executeTakeFirstOrThrow();
    await announceChange(transaction, 'topic', name);
    return { status: created ? 'created' : 'updated', topic };
  });
}

/** The topic of a name, if there is one. */
export async function findTopic(db: Database, name: string): Promise<TopicRow | undefined> {
  return db
    .selectFrom('topic')
    .select(columns)
    .where('name', '=', name)
    .where('state', '<>', 'deleted')
    .executeTakeFirst();
}

/** Topics by name. */
export async function listTopics(db: Database, page: NamePage): Promise<TopicRow[]> {
  const { limit, after, patterns } = page;
  return db
    .selectFrom('topic')
    .select(columns)
    .where('state', '<>', 'deleted')
    .$if(after !== undefined, (query) => query.where('name', '>', after ?? ''))
    .$if(patterns !== undefined, (query) =>
      query.where(sql<boolean>`name like any (${likePatterns(patterns ?? [])}::text[])`),
    )
    .orderBy('name')
    .limit(limit)
    .execute();
}

/** Patterns with '*' as PostgreSQL's LIKE has them. */
export function likePatterns(patterns: readonly string[]): string[] {
  return patterns.map((each) => each.replaceAll(/[\\%_]/g, '\\$&').replaceAll('*', '%'));
}

/**
 * Marks a topic deleted and frees its name. The row is locked before its subscriptions are looked for, and who makes a
 * subscription locks it too: none is left without its topic.
 */
export async function deleteTopic(
  db: Database,
  name: string,
): Promise<{ readonly status: 'deleted' | 'not_found' | 'has_subscriptions' }> {
  return db.transaction().execute(async (transaction) => {
    const topic = await transaction
      .selectFrom('topic')
      .select('id')
      .where('name', '=', name)
      .where('state', '<>', 'deleted')
      .forUpdate()
      .executeTakeFirst();
    if (topic === undefined) return { status: 'not_found' };
    const subscription = await transaction
      .selectFrom('subscription')
      .select('id')
      .where('topic_id', '=', topic.id)
      .where('state', '<>', 'deleted')
      .limit(1)
      .executeTakeFirst();
    if (subscription !== undefined) return { status: 'has_subscriptions' };
    await transaction
      .updateTable('topic')
      .set({
        state: 'deleted',
        deleted_at: sql`clock_timestamp()`,
        updated_at: sql`clock_timestamp()`,
      })
      .where('id', '=', topic.id)
      .execute();
    await announceChange(transaction, 'topic', name);
    return { status: 'deleted' };
  });
}
