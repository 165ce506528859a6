import { type Selectable, sql } from 'kysely';
import type { Database } from './client.ts';
import { faultOf } from './errors.ts';
import { insertPushSecret, type PushSecretRow } from './push-secrets.ts';
import type { PushMode, Subscription, SubscriptionType } from './schema.ts';
import { likePatterns, type NamePage } from './topics.ts';
import { announceChange } from './wakeups.ts';

/** Where and how the events of a push subscription are sent. */
export interface PushSettings {
  readonly endpoint: string;
  readonly mode: PushMode;
  /** Sent with every request. */
  readonly headers: Readonly<Record<string, string>>;
  /** For the whole request, 100 to 60,000. */
  readonly timeout_ms: number;
}

/** What of a subscription can be set; a PUT sets all of it. */
export interface SubscriptionSettings {
  /** {"exact": {attribute: text}}; null matches everything. */
  readonly filter: { readonly exact: Readonly<Record<string, string>> } | null;
  readonly visibility_timeout_seconds: number;
  readonly max_attempts: number;
  readonly minimum_backoff_ms: number;
  readonly maximum_backoff_ms: number;
  readonly backoff_multiplier: number;
  /** Push: whether answers such as 400 are tried again instead of becoming a dead letter at once. */
  readonly retry_client_errors: boolean;
  readonly backpressure: boolean;
  readonly on_expiry: 'drop' | 'dead_letter';
  /** Of a push subscription, and null of any other. */
  readonly push: PushSettings | null;
}

export interface NewSubscription {
  readonly name: string;
  /** Name of the topic; it never changes, nor does the type. */
  readonly topic: string;
  readonly type: SubscriptionType;
  readonly settings: SubscriptionSettings;
  /** Of a push subscription: seals its secret for the id that it gets. Not called where it exists already: it keeps its own. */
  readonly sealSecret?: ((subscriptionId: number) => PushSecretRow) | undefined;
}

type NotShown = 'filter_attributes' | 'filter_type' | 'deleted_at' | 'purged_at';
type PushColumn = 'push_endpoint' | 'push_mode' | 'push_headers' | 'push_timeout_ms';

export type SubscriptionRow = Omit<Selectable<Subscription>, 'filter' | NotShown | PushColumn> & {
  readonly topic: string;
  readonly filter: SubscriptionSettings['filter'];
  readonly push: PushSettings | null;
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
  { name, topic, type, settings, sealSecret }: NewSubscription,
): Promise<PutSubscriptionResult> {
  const values = columnsOf(settings);
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
    if (put.created && sealSecret !== undefined) {
      await insertPushSecret(transaction, put.id, sealSecret(put.id));
    }
    await announceChange(transaction, 'subscription', name);
    const subscription = await selectSubscriptions(transaction)
      .where('s.id', '=', put.id)
      .executeTakeFirstOrThrow();
    return { status: put.created ? 'created' : 'updated', id: put.id, subscription };
  });
}

function columnsOf({ filter, push, ...rest }: SubscriptionSettings) {
  return {
    ...rest,
    filter: jsonb(filter),
    push_endpoint: push === null ? null : push.endpoint,
    push_mode: push === null ? null : push.mode,
    push_headers: jsonb(push === null ? null : push.headers),
    push_timeout_ms: push === null ? null : push.timeout_ms,
  };
}

function jsonb(value: object | null) {
  return value === null ? null : sql<string>`${JSON.stringify(value)}::jsonb`;
}

/**
 * Changes a subscription into what `change` makes of it. Its row is locked meanwhile, so that of two changes at once neither
 * is lost; what `change` throws leaves it as it was. Undefined where there is none of this name.
 */
export async function changeSubscription(
  db: Database,
  name: string,
  change: (current: SubscriptionRow) => SubscriptionSettings,
): Promise<SubscriptionRow | undefined> {
  return db.transaction().execute(async (transaction) => {
    const current = await selectSubscriptions(transaction)
      .where('s.name', '=', name)
      .forNoKeyUpdate('s')
      .executeTakeFirst();
    if (current === undefined) return undefined;
    await transaction
      .updateTable('subscription')
      .set({ ...columnsOf(change(current)), updated_at: sql<string>`clock_timestamp()` })
      .where('id', '=', current.id)
      .execute();
    await announceChange(transaction, 'subscription', name);
    return selectSubscriptions(transaction)
      .where('s.id', '=', current.id)
      .executeTakeFirstOrThrow();
  });
}

/**
 * Pauses a subscription, or makes one that is paused or disabled active again, and tells claimers: what an operator calls in
 * psql. Undefined where there is none of this name.
 */
export async function switchSubscription(
  db: Database,
  name: string,
  verb: 'pause' | 'resume',
): Promise<SubscriptionRow | undefined> {
  try {
    return await db.transaction().execute(async (transaction) => {
      await sql`select ${sql.id('broker', verb)}(${name})`.execute(transaction);
      return selectSubscriptions(transaction).where('s.name', '=', name).executeTakeFirst();
    });
  } catch (error) {
    if (faultOf(error) === 'no_subscription') return undefined;
    throw error;
  }
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
      's.retry_client_errors',
      's.disabled_reason',
      's.created_at',
      's.updated_at',
    ])
    .select(sql<SubscriptionSettings['filter']>`s.filter`.as('filter'))
    .select(
      sql<PushSettings | null>`case when s.type = 'push' then jsonb_build_object('endpoint', s.push_endpoint,
        'mode', s.push_mode, 'headers', s.push_headers, 'timeout_ms', s.push_timeout_ms) end`.as(
        'push',
      ),
    )
    .where('s.state', '<>', 'deleted');
}

/**
 * Marks a subscription deleted and frees its name; from then on every verb skips it, and its leases are lost. Its secret is
 * gone at once.
 */
export async function deleteSubscription(
  db: Database,
  name: string,
): Promise<{ readonly status: 'deleted' | 'not_found' }> {
  return db.transaction().execute(async (transaction) => {
    const deleted = await transaction
      .updateTable('subscription')
      .set({
        state: 'deleted',
        deleted_at: sql`clock_timestamp()`,
        updated_at: sql`clock_timestamp()`,
      })
      .where('name', '=', name)
      .where('state', '<>', 'deleted')
      .returning('id')
      .executeTakeFirst();
    if (deleted === undefined) return { status: 'not_found' };
    await transaction.deleteFrom('push_secret').where('subscription_id', '=', deleted.id).execute();
    await announceChange(transaction, 'subscription', name);
    return { status: 'deleted' };
  });
}
