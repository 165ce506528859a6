import { type Selectable, sql } from 'kysely';
import type { Database } from './client.ts';
import type { Subscription, SubscriptionType } from './schema.ts';
import { likePatterns, type NamePage } from './topics.ts';
import { announceChange } from './wakeups.ts';

/** What of a subscription can be set; a PUT sets all of it. */
export interface SubscriptionSettings {
  /** {"exact": {attribute: text}}; null matches everything. */
  readonly filter: { readonly exact: Readonly<Record<string, string>> } | null;
  readonly visibility_timeout_seconds: number;
  readonly max_attempts: number;
  readonly minimum_backoff_ms: number;
  readonly maximum_backoff_ms: number;
  readonly backoff_multiplier: number;
  readonly backpressure: boolean;
  readonly on_expiry: 'drop' | 'dead_letter';
}

export interface NewSubscription {
  readonly name: string;
  /** Name of the topic; it never changes, nor does the type. */
  readonly topic: string;
  readonly type: SubscriptionType;
  readonly settings: SubscriptionSettings;
}

export type SubscriptionRow = Omit<
  Selectable<Subscription>,
  'filter' | 'filter_attributes' | 'filter_type' | 'deleted_at' | 'purged_at'
> & {
  readonly topic: string;
  readonly filter: SubscriptionSettings['filter'];
};

export type PutSubscriptionResult =
  | {
      readonly status: 'created' | 'updated';
      readonly id: number;
      readonly subscription: SubscriptionRow;
    }
  | { readonly status: 'topic_not_found' }
  /** It exists with another topic or type. */
  | { readonly status: 'immutable' };

/**
 * Creates a subscription, or replaces the settings of the one that has this name. The topic's row is locked first, so that
 * it is not deleted meanwhile. Two calls at once: one creates, the other replaces.
 */
export async function putSubscription(
  db: Database,
  { name, topic, type, settings }: NewSubscription,
): Promise<PutSubscriptionResult> {
  const values = { ...settings, filter: filterText(settings.filter) };
  return db.transaction().execute(async (transaction) => {
    const owner = await transaction
      .selectFrom('topic')
      .select('id')
      .where('name', '=', topic)
      .where('state', '<>', 'deleted')
      .forShare()
      .executeTakeFirst();
    if (owner === undefined) return { status: 'topic_not_found' };
    const put = await transaction
      .insertInto('subscription')
      .values({ name, topic_id: owner.id, type, ...values })
      .onConflict((conflict) =>
        conflict
          .column('name')
          .where(sql<boolean>`state <> 'deleted'`)
          .doUpdateSet({ ...values, updated_at: sql`clock_timestamp()` })
          .where('subscription.topic_id', '=', (eb) => eb.ref('excluded.topic_id'))
          .where('subscription.type', '=', (eb) => eb.ref('excluded.type')),
      )
      .returning(['id', sql<boolean>`xmax = 0`.as('created')])
      .executeTakeFirst();
    if (put === undefined) return { status: 'immutable' };
    await announceChange(transaction, 'subscription', name);
    const subscription = await selectSubscriptions(transaction)
      .where('s.id', '=', put.id)
      .executeTakeFirstOrThrow();
    return { status: put.created ? 'created' : 'updated', id: put.id, subscription };
  });
}

function filterText(filter: SubscriptionSettings['filter']) {
  return filter === null ? null : sql<string>`${JSON.stringify(filter)}::jsonb`;
}

/** The subscription of a name, with the name of its topic, if there is one. */
export async function findSubscription(
  db: Database,
  name: string,
): Promise<SubscriptionRow | undefined> {
  return selectSubscriptions(db).where('s.name', '=', name).executeTakeFirst();
}

/** Subscriptions by name, of all topics or of one. */
export async function listSubscriptions(
  db: Database,
  page: NamePage & { readonly topic?: string | undefined },
): Promise<SubscriptionRow[]> {
  const { limit, after, patterns, topic } = page;
  return selectSubscriptions(db)
    .$if(after !== undefined, (query) => query.where('s.name', '>', after ?? ''))
    .$if(topic !== undefined, (query) => query.where('t.name', '=', topic ?? ''))
    .$if(patterns !== undefined, (query) =>
      query.where(sql<boolean>`t.name like any (${likePatterns(patterns ?? [])}::text[])`),
    )
    .orderBy('s.name')
    .limit(limit)
    .execute();
}

function selectSubscriptions(db: Database) {
  return db
    .selectFrom('subscription as s')
    .innerJoin('topic as t', 't.id', 's.topic_id')
    .select([
      's.id',
      's.topic_id',
      's.name',
      't.name as topic',
      's.type',
      's.state',
      's.visibility_timeout_seconds',
      's.max_attempts',
      's.minimum_backoff_ms',
      's.maximum_backoff_ms',
      's.backoff_multiplier',
      's.ordered',
      's.max_in_flight',
      's.backpressure',
      's.on_expiry',
      's.created_at',
      's.updated_at',
    ])
    .select(sql<SubscriptionSettings['filter']>`s.filter`.as('filter'))
    .where('s.state', '<>', 'deleted');
}

/** Marks a subscription deleted and frees its name; from then on every verb skips it, and its leases are lost. */
export async function deleteSubscription(
  db: Database,
  name: string,
): Promise<{ readonly status: 'deleted' | 'not_found' }> {
  return db.transaction().execute(async (transaction) => {
    const { numUpdatedRows } = await transaction
      .updateTable('subscription')
      .set({
        state: 'deleted',
        deleted_at: sql`clock_timestamp()`,
        updated_at: sql`clock_timestamp()`,
      })
      .where('name', '=', name)
      .where('state', '<>', 'deleted')
      .executeTakeFirst();
    if (numUpdatedRows === 0n) return { status: 'not_found' };
    await announceChange(transaction, 'subscription', name);
    return { status: 'deleted' };
  });
}
