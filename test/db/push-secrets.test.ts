import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { findPushSecret, insertPushSecret, pushSecretContext } from '#db/push-secrets.ts';
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
