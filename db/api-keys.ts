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

/**
 * Removes a key; it opens nothing any more. Of a seeded one the hash stays, as that of a key that has expired: a replica that is
 * still configured with it must not seed it again.
 */
export async function deleteApiKey(
  db: Database,
  id: number,
): Promise<{ readonly status: 'deleted' | 'not_found' }> {
  return db.transaction().execute(async (transaction) => {
    const { numDeletedRows } = await transaction
      .deleteFrom('api_key')
      .where('id', '=', id)
      .where('name', '<>', seededKeyName)
      .executeTakeFirst();
    const { numUpdatedRows } = await transaction
      .updateTable('api_key')
      .set({ expires_at: sql<string>`clock_timestamp()` })
      .where('id', '=', id)
      .where('name', '=', seededKeyName)
      .where(sql<boolean>`(expires_at is null or expires_at > clock_timestamp())`)
      .executeTakeFirst();
    if (numDeletedRows + numUpdatedRows === 0n) return { status: 'not_found' };
    await announceChange(transaction, 'api_key', String(id));
    return { status: 'deleted' };
  });
}

export interface SeedOptions {
  /** How long the key before goes on to open everything, in milliseconds (an hour). */
  readonly overlapMs?: number;
  /** This key again, although another took its place: where one process alone seeds keys, the one that it has is right. */
  readonly reinstates?: boolean;
}

export type SeedResult =
  | { readonly status: 'unchanged' }
  /** Another took the place of this key, or it was deleted: nothing was changed. */
  | { readonly status: 'superseded' }
  | {
      readonly status: 'seeded';
      /** The key before, and until when it opens everything. */
      readonly before: { readonly id: number; readonly expires_at: string } | undefined;
    };

/**
 * Makes the key of the configuration the seeded one, with scope admin. The one before opens everything for a while, because
 * replicas that have the old configuration and the new run side by side during an update; a key whose place another took never
 * comes back, however late a replica of the old configuration starts. So what was seeded is kept, expired: the key that has no
 * expiry is the one that holds. Repeatable, and several processes may do it at once.
 */
export async function seedAdminKey(
  db: Database,
  { hash, prefix }: { readonly hash: Buffer; readonly prefix: string },
  { overlapMs = 3_600_000, reinstates = false }: SeedOptions = {},
): Promise<SeedResult> {
  return db.transaction().execute(async (transaction) => {
    await sql`select pg_advisory_xact_lock(hashtext('broker.seed_admin_key'))`.execute(transaction);
    const own = await transaction
      .selectFrom('api_key')
      .select('expires_at')
      .where('name', '=', seededKeyName)
      .where('hash', '=', hash)
      .executeTakeFirst();
    if (own?.expires_at === null) return { status: 'unchanged' };
    if (own !== undefined && !reinstates) return { status: 'superseded' };
    const before = await transaction
      .updateTable('api_key')
      .set({
        expires_at: sql<string>`clock_timestamp() + ${overlapMs} * interval '1 millisecond'`,
      })
      .where('name', '=', seededKeyName)
      .where('expires_at', 'is', null)
      .returning(['id', sql<string>`expires_at`.as('expires_at')])
      .executeTakeFirst();
    const values = { name: seededKeyName, scopes: ['admin'], topics: null, expires_at: null };
    const { id } = await transaction
      .insertInto('api_key')
      .values({ ...values, hash, prefix })
      .onConflict((conflict) => conflict.column('hash').doUpdateSet(values))
      .returning('id')
      .executeTakeFirstOrThrow();
    // whoever hears it looks all of them up again
    await announceChange(transaction, 'api_key', String(id));
    return { status: 'seeded', before };
  });
}
