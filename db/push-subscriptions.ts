import { sql } from 'kysely';
import type { Database } from './client.ts';
import type { PushMode, SubscriptionState } from './schema.ts';
import { announceChange } from './wakeups.ts';

/** What a worker must know of a push subscription to send its events. */
export interface PushSubscriptionRow {
  readonly id: number;
  readonly name: string;
  readonly topic_id: number;
  /** Name of the topic. */
  readonly topic: string;
  readonly state: SubscriptionState;
  readonly endpoint: string;
  readonly mode: PushMode;
  /** Sent with every request; ours win. */
  readonly headers: Readonly<Record<string, string>>;
  readonly timeout_ms: number;
  /** Whether answers such as 400 are tried again instead of becoming a dead letter at once. */
  readonly retry_client_errors: boolean;
  /** Of the key that `sealed` was encrypted with; null: it is the secret itself. */
  readonly key_id: string | null;
  /** The signing secret. */
  readonly sealed: Buffer;
}

/** The push subscription of an id, whatever its state, unless it was deleted. */
export async function findPushSubscription(
  db: Database,
  id: number,
): Promise<PushSubscriptionRow | undefined> {
  return (
    db
      .selectFrom('subscription as s')
      .innerJoin('topic as t', 't.id', 's.topic_id')
      .innerJoin('push_secret as p', 'p.subscription_id', 's.id')
      .select(['s.id', 's.name', 's.topic_id', 't.name as topic', 's.state'])
      .select(['s.push_timeout_ms as timeout_ms', 's.retry_client_errors', 'p.key_id', 'p.sealed'])
      .select(['s.push_endpoint as endpoint', 's.push_mode as mode'])
      .select(sql<PushSubscriptionRow['headers']>`s.push_headers`.as('headers'))
      .where('s.id', '=', id)
      .where('s.type', '=', 'push')
      .where('s.state', '<>', 'deleted')
      // that all of these are there is a constraint of the table
      .$narrowType<{ endpoint: string; mode: PushMode; timeout_ms: number }>()
      .executeTakeFirst()
  );
}

/**
 * Stops the pushing to an endpoint that said that it is gone; `resume` undoes it. Changes nothing, and returns false, where
 * the subscription is not active any more or has another endpoint by now.
 */
export async function disableSubscription(
  db: Database,
  {
    id,
    endpoint,
    reason,
  }: { readonly id: number; readonly endpoint: string; readonly reason: string },
): Promise<boolean> {
  return db.transaction().execute(async (transaction) => {
    const disabled = await transaction
      .updateTable('subscription')
      .set({
        state: 'disabled',
        disabled_reason: reason,
        updated_at: sql<string>`clock_timestamp()`,
      })
      .where('id', '=', id)
      .where('type', '=', 'push')
      .where('state', '=', 'active')
      .where('push_endpoint', '=', endpoint)
      .returning('name')
      .executeTakeFirst();
    if (disabled === undefined) return false;
    await announceChange(transaction, 'subscription', disabled.name);
    return true;
  });
}
