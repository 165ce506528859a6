import type { Database } from './client.ts';

/** The signing secret of a push subscription, as it is kept: 32 bytes when opened. */
export interface PushSecretRow {
  /** Of the key that `sealed` was encrypted with; null: it is the secret itself. */
  readonly key_id: string | null;
  readonly sealed: Buffer;
}

/** What a sealed secret is bound to, so that it cannot be moved to another subscription. */
export function pushSecretContext(subscriptionId: number): string {
  return `push_secret ${subscriptionId}`;
}

/** Keeps the secret of a new push subscription; it is never changed. */
export async function insertPushSecret(
  db: Database,
  subscriptionId: number,
  { key_id, sealed }: PushSecretRow,
): Promise<void> {
  await db
    .insertInto('push_secret')
    .values({ subscription_id: subscriptionId, key_id, sealed })
    .execute();
}

/** The secret of a push subscription. */
export async function findPushSecret(
  db: Database,
  subscriptionId: number,
): Promise<PushSecretRow | undefined> {
  return db
    .selectFrom('push_secret')
    .select(['key_id', 'sealed'])
    .where('subscription_id', '=', subscriptionId)
    .executeTakeFirst();
}
