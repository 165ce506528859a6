import { sql } from 'kysely';
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

/** The secret of a subscription, with whose it is. */
export interface KeptPushSecret extends PushSecretRow {
  readonly subscription_id: number;
  /** Name of the subscription. */
  readonly subscription: string;
}

/** Keeps the secret of a new push subscription; from then on only the key that it is sealed with may change. */
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

/** Secrets that are sealed with another key than this one, or with none, in the order of their subscriptions' ids. */
export async function listPushSecretsNotSealedBy(
  db: Database,
  keyId: string | null,
  page: { readonly limit: number; readonly after?: number | undefined },
): Promise<KeptPushSecret[]> {
  return db
    .selectFrom('push_secret as p')
    .innerJoin('subscription as s', 's.id', 'p.subscription_id')
    .select(['p.subscription_id', 's.name as subscription', 'p.key_id', 'p.sealed'])
    .where(sql<boolean>`p.key_id is distinct from ${keyId}`)
    .where('p.subscription_id', '>', page.after ?? 0)
    .orderBy('p.subscription_id')
    .limit(page.limit)
    .execute();
}

/**
 * Puts secrets that were sealed anew in the place of what was read, in one transaction; returns for how many. One that is not
 * kept as it was read any more, or is gone, stays as it is. By ascending ids: two that do this at once wait for each other in
 * one order.
 */
export async function replacePushSecrets(
  db: Database,
  replacements: readonly { readonly was: KeptPushSecret; readonly becomes: PushSecretRow }[],
): Promise<number> {
  const ordered = replacements.toSorted((a, b) => a.was.subscription_id - b.was.subscription_id);
  return db.transaction().execute(async (transaction) => {
    let replaced = 0;
    for (const { was, becomes } of ordered) {
      const { numUpdatedRows } = await transaction
        .updateTable('push_secret')
        .set({ key_id: becomes.key_id, sealed: becomes.sealed })
        .where('subscription_id', '=', was.subscription_id)
        .where(sql<boolean>`key_id is not distinct from ${was.key_id}`)
        .where('sealed', '=', was.sealed)
        .executeTakeFirst();
      replaced += Number(numUpdatedRows);
    }
    return replaced;
  });
}
