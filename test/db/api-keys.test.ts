import { createHash, randomBytes } from 'node:crypto';
import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createApiKey, deleteApiKey, findApiKey, listApiKeys, seedAdminKey } from '#db/api-keys.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase(8);
});
afterAll(() => database[Symbol.asyncDispose]());

function aKey(expiresAt: string | null = null) {
  const hash = createHash('sha256').update(randomBytes(32)).digest();
  return {
    name: 'a key',
    hash,
    prefix: 'ebk_',
    scopes: ['publish'],
    topics: ['a*'],
    expires_at: expiresAt,
  };
}

test('a key is found by its hash until it is deleted', async () => {
  const key = aKey();
  const made = await createApiKey(database.db, key);
  expect(made).toMatchObject({
    status: 'created',
    apiKey: { scopes: ['publish'], topics: ['a*'] },
  });
  const found = await findApiKey(database.db, key.hash);
  expect(found).toMatchObject({ scopes: ['publish'], topics: ['a*'], expires_in_ms: null });
  expect(found?.hash.equals(key.hash)).toBe(true);
  const id = found?.id ?? 0;
  expect((await listApiKeys(database.db, { limit: 1, after: id - 1 }))[0]?.id).toBe(id);
  expect(await deleteApiKey(database.db, id)).toEqual({ status: 'deleted' });
  expect(await deleteApiKey(database.db, id)).toEqual({ status: 'not_found' });
  expect(await findApiKey(database.db, key.hash)).toBeUndefined();
});

test('a key expires by the clock of the database', async () => {
  expect(await createApiKey(database.db, aKey('2001-01-01T00:00:00Z'))).toEqual({
    status: 'expired',
  });
  const key = aKey('2999-01-01T00:00:00Z');
  await createApiKey(database.db, key);
  expect((await findApiKey(database.db, key.hash))?.expires_in_ms).toBeGreaterThan(1e12);
  await sql`update broker.api_key set expires_at = clock_timestamp() where hash = ${key.hash}`.execute(
    database.db,
  );
  expect(await findApiKey(database.db, key.hash)).toBeUndefined();
});

test('of the key of the configuration there is always one, whoever seeds at once', async () => {
  const seeded = async () => {
    const keys = await listApiKeys(database.db, { limit: 250 });
    return keys.filter(({ name }) => name === 'ADMIN_API_KEY');
  };
  const [first, second] = [aKey(), aKey()];
  const statuses = await Promise.all(
    Array.from({ length: 8 }, () => seedAdminKey(database.db, first)),
  );
  expect(statuses.filter(({ status }) => status === 'seeded')).toHaveLength(1);
  await Promise.all([seedAdminKey(database.db, second), seedAdminKey(database.db, second)]);
  expect(await seeded()).toHaveLength(1);
  expect(await findApiKey(database.db, first.hash)).toBeUndefined();
  expect(await findApiKey(database.db, second.hash)).toMatchObject({ scopes: ['admin'] });
  // a key that was made by hand becomes the configured one
  const third = aKey();
  await createApiKey(database.db, third);
  await seedAdminKey(database.db, third);
  expect(await seeded()).toHaveLength(1);
  expect(await findApiKey(database.db, third.hash)).toMatchObject({
    scopes: ['admin'],
    topics: null,
  });
});
