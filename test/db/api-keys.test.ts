import { createHash, randomBytes } from 'node:crypto';
import { sql } from 'kysely';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createApiKey, deleteApiKey, findApiKey, listApiKeys, seedAdminKey } from '#db/api-keys.ts';
import { createWakeups } from '#db/wakeups.ts';
import { untilListening } from '../support/until-listening.ts';
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

describe('the key of the configuration', () => {
  let own: VerbDatabase;
  beforeEach(async () => {
    own = await openVerbDatabase(8);
  });
  afterEach(() => own[Symbol.asyncDispose]());

  const seeded = async () => {
    const keys = await listApiKeys(own.db, { limit: 250 });
    return keys.filter(({ name }) => name === 'ADMIN_API_KEY');
  };
  const opens = async ({ hash }: { hash: Buffer }) =>
    (await findApiKey(own.db, hash)) !== undefined;

  test('is seeded once, whoever does it at once', async () => {
    const key = aKey();
    const results = await Promise.all(Array.from({ length: 8 }, () => seedAdminKey(own.db, key)));
    expect(results.filter(({ status }) => status === 'seeded')).toEqual([
      { status: 'seeded', before: undefined },
    ]);
    expect(await seeded()).toMatchObject([{ scopes: ['admin'], topics: null, expires_at: null }]);
    expect(await opens(key)).toBe(true);
  });

  test('gives its place to a new one, opens everything for an hour more, and never comes back', async () => {
    const [old, young] = [aKey(), aKey()];
    await seedAdminKey(own.db, old);
    const [{ id } = { id: 0 }] = await seeded();
    const results = await Promise.all([seedAdminKey(own.db, young), seedAdminKey(own.db, young)]);
    expect(results.map(({ status }) => status).toSorted()).toEqual(['seeded', 'unchanged']);
    expect(results).toContainEqual({
      status: 'seeded',
      before: { id, expires_at: expect.any(String) as string },
    });
    const { expires_in_ms } = (await findApiKey(own.db, old.hash)) ?? {};
    expect(expires_in_ms).toBeGreaterThan(3_500_000);
    expect(expires_in_ms).toBeLessThanOrEqual(3_600_000);
    expect(await seedAdminKey(own.db, old)).toEqual({ status: 'superseded' });
    expect((await seeded()).map(({ expires_at }) => expires_at === null)).toEqual([false, true]);
    await sql`update broker.api_key set expires_at = clock_timestamp() where id = ${id}`.execute(
      own.db,
    );
    expect(await seedAdminKey(own.db, old)).toEqual({ status: 'superseded' });
    expect([await opens(old), await opens(young)]).toEqual([false, true]);
  });

  test('that was deleted opens nothing, and is not seeded again', async () => {
    const [old, young] = [aKey(), aKey()];
    await seedAdminKey(own.db, old);
    await seedAdminKey(own.db, young);
    for (const key of [old, young]) {
      const id = (await findApiKey(own.db, key.hash))?.id ?? 0;
      expect(await deleteApiKey(own.db, id)).toEqual({ status: 'deleted' });
      expect(await deleteApiKey(own.db, id)).toEqual({ status: 'not_found' });
      expect(await seedAdminKey(own.db, key)).toEqual({ status: 'superseded' });
      expect(await opens(key)).toBe(false);
    }
    const third = aKey();
    expect(await seedAdminKey(own.db, third)).toEqual({ status: 'seeded', before: undefined });
    expect(await opens(third)).toBe(true);
  });

  test('is deleted while a new one takes its place: it is gone, whichever comes first', async () => {
    for (let round = 0; round < 20; round += 1) {
      const [old, young] = [aKey(), aKey()];
      await seedAdminKey(own.db, old);
      const id = (await findApiKey(own.db, old.hash))?.id ?? 0;
      await Promise.all([seedAdminKey(own.db, young), deleteApiKey(own.db, id)]);
      expect([await opens(old), await opens(young)]).toEqual([false, true]);
    }
  });

  test('is looked up again by every replica when it was seeded, and when it was deleted', async () => {
    const applicationName = 'wakeups';
    const wakeups = createWakeups({ db: own.db, directUrl: own.url, applicationName });
    await untilListening(wakeups);
    const heard: string[] = [];
    wakeups.onChange((kind) => heard.push(kind));
    const key = aKey();
    await seedAdminKey(own.db, key);
    await expect.poll(() => heard).toEqual(['api_key']);
    await deleteApiKey(own.db, (await findApiKey(own.db, key.hash))?.id ?? 0);
    await expect.poll(() => heard).toEqual(['api_key', 'api_key']);
    await wakeups.close();
  });

  test('may be one that was made by hand', async () => {
    const [old, young] = [aKey(), aKey('2999-01-01T00:00:00Z')];
    await seedAdminKey(own.db, old);
    await createApiKey(own.db, young);
    expect(await seedAdminKey(own.db, young)).toMatchObject({ status: 'seeded' });
    expect(await findApiKey(own.db, young.hash)).toMatchObject({
      name: 'ADMIN_API_KEY',
      scopes: ['admin'],
      topics: null,
      expires_in_ms: null,
    });
  });

  test('of a process that is alone is always the one that it has, and the one before ends at once', async () => {
    const [one, two] = [aKey(), aKey()];
    const alone = { reinstates: true, overlapMs: 0 };
    for (const [key, other] of [
      [one, two],
      [two, one],
      [one, two],
    ] as const) {
      expect(await seedAdminKey(own.db, key, alone)).toMatchObject({ status: 'seeded' });
      expect([await opens(key), await opens(other)]).toEqual([true, false]);
      expect(await seedAdminKey(own.db, key, alone)).toEqual({ status: 'unchanged' });
    }
    expect(await seeded()).toHaveLength(2);
  });
});
