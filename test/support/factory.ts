import { sql } from 'kysely';
import type { Database } from '#db/client.ts';
import { ensurePartitions } from '#db/partitions.ts';
import { publishBatch, type NewEvent } from '#db/publish.ts';
import type { SubscriptionState, TopicState } from '#db/schema.ts';

let sequence = 0;

export interface TopicOverrides {
  readonly name?: string;
  readonly retention_seconds?: number;
  readonly retention_class?: number;
  readonly deduplication_seconds?: number;
  readonly state?: TopicState;
}

/** A topic with valid defaults, and the partitions that it needs; returns its id. */
export async function aTopic(db: Database, overrides: TopicOverrides = {}): Promise<number> {
  const { id, retention_class } = await db
    .insertInto('topic')
    .values({
      name: `topic-${++sequence}`,
      retention_seconds: 604800,
      retention_class: 168,
      deduplication_seconds: 86400,
      max_backlog: 100000,
      ...overrides,
    })
    .returning(['id', 'retention_class'])
    .executeTakeFirstOrThrow();
  await ensurePartitions(db, retention_class);
  return id;
}

export interface SubscriptionOverrides {
  readonly name?: string;
  readonly filter?: object | null;
  readonly max_attempts?: number;
  readonly minimum_backoff_ms?: number;
  readonly maximum_backoff_ms?: number;
  readonly backoff_multiplier?: number;
  readonly visibility_timeout_seconds?: number;
  readonly on_expiry?: 'drop' | 'dead_letter';
  readonly state?: SubscriptionState;
}

/** A pull subscription with valid defaults; returns its id. */
export async function aSubscription(
  db: Database,
  topicId: number,
  overrides: SubscriptionOverrides = {},
): Promise<number> {
  const { filter, ...rest } = overrides;
  const { id } = await db
    .insertInto('subscription')
    .values({
      topic_id: topicId,
      name: `subscription-${++sequence}`,
      type: 'pull',
      visibility_timeout_seconds: 30,
      max_attempts: 10,
      minimum_backoff_ms: 1000,
      maximum_backoff_ms: 60000,
      backoff_multiplier: 2,
      backpressure: true,
      filter: filter === undefined || filter === null ? null : JSON.stringify(filter),
      ...rest,
    })
    .returning('id')
    .executeTakeFirstOrThrow();
  return id;
}

/** An event with valid defaults. */
export function anEvent(overrides: Partial<NewEvent> = {}): NewEvent {
  const data = overrides.data ?? `{"number":${++sequence}}`;
  return { type: 'order.created', bytes: data.length + 13, ...overrides, data };
}

/** Publishes n events in one call; returns their ids. */
export async function publishMany(
  db: Database,
  topicId: number,
  count: number,
  overrides: Partial<NewEvent> = {},
): Promise<string[]> {
  const ids: string[] = [];
  for (let from = 0; from < count; from += 1000) {
    const events = Array.from({ length: Math.min(1000, count - from) }, () => anEvent(overrides));
    const result = await publishBatch(db, topicId, [{ events }]);
    if (result.status !== 'published') throw new Error(result.status);
    ids.push(...result.results.flat().map((each) => each.id));
  }
  return ids;
}

/** Makes this connection the leader on paper: returns the new term. */
export async function aTerm(db: Database): Promise<string> {
  const { rows } = await sql<{ term: string }>`update broker.leader set term = term + 1,
    heartbeat_at = clock_timestamp() returning term`.execute(db);
  return rows[0]?.term ?? '0';
}

/** A worker on paper, whose session lock nobody holds; returns the name that its leases are marked with. */
export async function aWorker(db: Database): Promise<string> {
  const instance = `worker-${++sequence}`;
  await db
    .insertInto('worker')
    .values({ instance, service: 'worker', version: '0', host: 'test', pid: 1, lock_key: sequence })
    .execute();
  return instance;
}
