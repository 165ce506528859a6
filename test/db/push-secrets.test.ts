import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  findPushSecret,
  insertPushSecret,
  listPushSecretsNotSealedBy,
  pushSecretContext,
  replacePushSecrets,
} from '#db/push-secrets.ts';
import { deleteSubscription } from '#db/subscriptions.ts';
import { aPushSubscription } from '../support/a-push-subscription.ts';
import { aTopic } from '../support/factory.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
  await aTopic(database.db, { name: 'orders' });
});
afterAll(() => database[Symbol.asyncDispose]());

test('a secret is kept as it was sealed, and never replaced', async () => {
  const sealed = Buffer.from([0, 255, 10, 92, 39]);
  const { id } = await aPushSubscription(database.db, {
    topic: 'orders',
    secret: { key_id: 'abcdef01', sealed },
  });
  expect(await findPushSecret(database.db, id)).toEqual({ key_id: 'abcdef01', sealed });
  const other = { key_id: null, sealed: Buffer.from('other') };
  await expect(insertPushSecret(database.db, id, other)).rejects.toThrow(/push_secret_pk/);
  expect(await findPushSecret(database.db, id)).toEqual({ key_id: 'abcdef01', sealed });
  expect(await findPushSecret(database.db, 2_000_000_000)).toBeUndefined();
  expect(pushSecretContext(7)).not.toBe(pushSecretContext(8));
});

test('those of another key, or of none, are listed page by page with the names of their subscriptions', async () => {
  const keys = ['0000000a', '0000000b', null, '0000000a', '0000000c'];
  const made = [];
  for (const key_id of keys) {
    const secret = { key_id, sealed: Buffer.from(String(key_id)) };
    made.push(await aPushSubscription(database.db, { topic: 'orders', secret }));
  }
  const expected = [made[1], made[2], made[4]].map((each) => each?.name);
  const named = [];
  for (let after = (made[0]?.id ?? 0) - 1; ;) {
    const page = await listPushSecretsNotSealedBy(database.db, '0000000a', { limit: 2, after });
    expect(page.length).toBeLessThanOrEqual(2);
    const last = page.at(-1);
    if (last === undefined) break;
    after = last.subscription_id;
    named.push(...page.map(({ subscription }) => subscription));
  }
  expect(named).toEqual(expected);
});

test('a secret is replaced only where it is still what was read', async () => {
  const { db } = database;
  const { id, name } = await aPushSubscription(db, { topic: 'orders' });
  const gone = await aPushSubscription(db, { topic: 'orders' });
  const read = await listPushSecretsNotSealedBy(db, '0000000a', { limit: 2, after: id - 1 });
  expect(read.map(({ subscription }) => subscription)).toEqual([name, gone.name]);
  const sealedWith = (key_id: string) =>
    read.map((was) => ({ was, becomes: { key_id, sealed: Buffer.from(key_id) } }));
  await deleteSubscription(db, gone.name);
  expect(await replacePushSecrets(db, sealedWith('0000000a'))).toBe(1);
  expect(await replacePushSecrets(db, sealedWith('0000000b'))).toBe(0);
  const kept = { key_id: '0000000a', sealed: Buffer.from('0000000a') };
  expect(await findPushSecret(db, id)).toEqual(kept);
  expect(await findPushSecret(db, gone.id)).toBeUndefined();
  // the same bytes under another key are not the same either
  const other = { subscription_id: id, subscription: name, ...kept, key_id: '0000000b' };
  const becomes = { key_id: null, sealed: Buffer.from('x') };
  expect(await replacePushSecrets(db, [{ was: other, becomes }])).toBe(0);
  expect(await findPushSecret(db, id)).toEqual(kept);
});

test('two that replace the same ones at once, in any order, do not block each other for good', async () => {
  const { db } = database;
  const made = [];
  for (let n = 0; n < 100; n += 1) {
    made.push(await aPushSubscription(db, { topic: 'orders' }));
  }
  const page = { limit: made.length, after: (made[0]?.id ?? 0) - 1 };
  const read = await listPushSecretsNotSealedBy(db, '0000000a', page);
  const replace = (rows: typeof read, key_id: string) =>
    replacePushSecrets(
      db,
      rows.map((was) => ({ was, becomes: { key_id, sealed: Buffer.from(key_id) } })),
    );
  const [one, two] = await Promise.all([
    replace(read, '0000000b'),
    replace(read.toReversed(), '0000000c'),
  ]);
  expect(one + two).toBe(made.length);
});

test('a role that may read every other table cannot read it', async () => {
  await aPushSubscription(database.db, { topic: 'orders' });
  // a role belongs to the whole server: one of this run alone
  const role = `reader_${crypto.randomUUID().slice(0, 8)}`;
  const reader = new pg.Client({ connectionString: database.url });
  await reader.connect();
  try {
    await reader.query(`create role ${role}; grant usage on schema broker to ${role};
      grant select on all tables in schema broker to ${role}; revoke select on broker.push_secret from ${role};
      set role ${role}`);
    const { rows } = await reader.query('select push_endpoint from broker.subscription');
    expect(rows.length).toBeGreaterThan(0);
    await reader.query('select from broker.backlog');
    await expect(reader.query('select sealed from broker.push_secret')).rejects.toThrow(
      /permission denied/,
    );
    // by no view either
    const { rows: columns } = await reader.query<{ name: string }>(
      `select view_name || '.' || table_name as name from information_schema.view_table_usage where table_name = 'push_secret'`,
    );
    expect(columns).toEqual([]);
    await reader.query(
      `reset role; grant select on broker.push_secret to ${role}; set role ${role}`,
    );
    expect(
      (await reader.query('select sealed from broker.push_secret')).rows.length,
    ).toBeGreaterThan(0);
  } finally {
    await reader.query(`reset role; drop owned by ${role}; drop role ${role}`);
    await reader.end();
  }
});

test('nobody has it from PUBLIC', async () => {
  const { rows } = await sql`select grantee from information_schema.role_table_grants
    where table_schema = 'broker' and table_name = 'push_secret' and grantee = 'PUBLIC'`.execute(
    database.db,
  );
  expect(rows).toEqual([]);
});
