import { type Selectable, sql } from 'kysely';
import type { Database } from './client.ts';
import type { ApiKey } from './schema.ts';
import { announceChange } from './wakeups.ts';

/** The name of the key that configuration seeds; no other key may have it. */
export const seededKeyName = 'ADMIN_API_KEY';

export interface NewApiKey {
  readonly name: string;
  /** SHA-256 of the key: the key itself is kept nowhere. */
  readonly hash: Buffer;
  readonly prefix: string;
  readonly scopes: readonly string[];
  /** Patterns over names of topics; null opens all. */
  readonly topics: readonly string[] | null;
  /** RFC 3339. */
  readonly expires_at: string | null;
}

export type ApiKeyRow = Omit<Selectable<ApiKey>, 'hash'>;

/** A key as the doors know it. */
export interface KnownApiKey {
  readonly id: number;
  readonly name: string;
  readonly hash: Buffer;
  readonly scopes: readonly string[];
  readonly topics: readonly string[] | null;
  /** By the database's clock; null for a key that does not expire. */
  readonly expires_in_ms: number | null;
}

const columns = ['id', 'name', 'prefix', 'scopes', 'topics', 'created_at', 'expires_at'] as const;

/** Stores a key by its hash. */
export async function createApiKey(
  db: Database,
  key: NewApiKey,
): Promise<
  { readonly status: 'created'; readonly apiKey: ApiKeyRow } | { readonly status: 'expired' }
> {
  return db.transaction().execute(async (transaction) => {
    const { rows } = await sql<{ is_expired: boolean }>`
      select coalesce(${key.expires_at}::timestamptz <= clock_timestamp(), false) as is_expired`.execute(
      transaction,
    );
    if (rows[0]?.is_expired === true) return { status: 'expired' };
    const apiKey = await transaction
      .insertInto('api_key')
      .values({
        ...key,
        scopes: [...key.scopes],
        topics: key.topics === null ? null : [...key.topics],
      })
      .returning(columns)
      .executeTakeFirstOrThrow();
    await announceChange(transaction, 'api_key', String(apiKey.id));
    return { status: 'created', apiKey };
  });
}

/** The key of a hash, unless it has expired. */
export async function findApiKey(db: Database, hash: Buffer): Promise<KnownApiKey | undefined> {
  return db
    .selectFrom('api_key')
    .select(['id', 'name', 'hash', 'scopes', 'topics'])
    .select(
      sql<number | null>`(extract(epoch from expires_at - clock_timestamp()) * 1000)::float8`.as(
        'expires_in_ms',
      ),
    )
    .where('hash', '=', hash)
    .where(sql<boolean>`(expires_at is null or expires_at > clock_timestamp())`)
    .executeTakeFirst();
}

/** Keys in the order in which they were made. */
export async function listApiKeys(
  db: Database,
  page: { readonly limit: number; readonly after?: number | undefined },
): Promise<ApiKeyRow[]> {
  return db
    .selectFrom('api_key')
    .select(columns)
    .where('id', '>', page.after ?? 0)
    .orderBy('id')
    .limit(page.limit)
    .execute();
}

/** Removes a key; it opens nothing any more. */
export async function deleteApiKey(
  db: Database,
  id: number,
): Promise<{ readonly status: 'deleted' | 'not_found' }> {
  return db.transaction().execute(async (transaction) => {
    const { numDeletedRows } = await transaction
      .deleteFrom('api_key')
      .where('id', '=', id)
      .executeTakeFirst();
    if (numDeletedRows === 0n) return { status: 'not_found' };
    await announceChange(transaction, 'api_key', String(id));
    return { status: 'deleted' };
  });
}

/**
 * Makes the key of the configuration the seeded one, with scope admin; the one before opens nothing any more. Repeatable,
 * and several processes may do it at once.
 */
export async function seedAdminKey(
  db: Database,
  { hash, prefix }: { readonly hash: Buffer; readonly prefix: string },
): Promise<{ readonly status: 'seeded' | 'unchanged' }> {
  return db.transaction().execute(async (transaction) => {
    await sql`select pg_advisory_xact_lock(hashtext('broker.seed_admin_key'))`.execute(transaction);
    const seeded = await transaction
      .selectFrom('api_key')
      .select('hash')
      .where('name', '=', seededKeyName)
      .execute();
    if (seeded.length === 1 && seeded[0]?.hash.equals(hash) === true) {
      return { status: 'unchanged' };
    }
    await transaction
      .deleteFrom('api_key')
      .where('name', '=', seededKeyName)
      .where('hash', '<>', hash)
      .execute();
    const values = { name: seededKeyName, scopes: ['admin'], topics: null, expires_at: null };
    const { id } = await transaction
      .insertInto('api_key')
      .values({ ...values, hash, prefix })
      .onConflict((conflict) => conflict.column('hash').doUpdateSet(values))
      .returning('id')
      .executeTakeFirstOrThrow();
    await announceChange(transaction, 'api_key', String(id));
    return { status: 'seeded' };
  });
}
