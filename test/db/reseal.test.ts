// Goal: after `migrate` all signing secrets are under the first key, whatever happened to them meanwhile; what cannot be opened is told.
import { sql } from 'kysely';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { findPushSecret, pushSecretContext } from '#db/push-secrets.ts';
import { deleteSubscription } from '#db/subscriptions.ts';
import { createSealer } from '#runtime/sealer.ts';
import { resealPushSecrets } from '../../apps/migrate/reseal.ts';
import { aPushSubscription } from '../support/a-push-subscription.ts';
import { aTopic } from '../support/factory.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

const [oldKey, newKey, lostKey] = [1, 2, 3].map((n) => Buffer.alloc(32, n).toString('base64')) as [
  string,
  string,
  string,
];
const both = `${newKey},${oldKey}`;

let database: VerbDatabase;
let db: Database;
beforeEach(async () => {
  database = await openVerbDatabase();
  db = database.db;
  await aTopic(db, { name: 'orders' });
});
afterEach(() => database[Symbol.asyncDispose]());

interface Made {
  readonly id: number;
  readonly name: string;
  readonly plain: Buffer;
}

/** Subscriptions whose secrets are sealed with this key; with none they are plain. */
async function subscriptions(count: number, key: string | undefined): Promise<Made[]> {
  const made: Made[] = [];
  for (let n = 0; n < count; n += 1) {
    const plain = crypto.getRandomValues(Buffer.alloc(32));
    const { id, name } = await aPushSubscription(db, { topic: 'orders' });
    await seal({ id, name, plain }, key);
    made.push({ id, name, plain });
  }
  return made;
}

async function seal({ id, plain }: Made, key: string | undefined, on = db): Promise<void> {
  const { keyId, sealed } = createSealer(key).seal(plain, pushSecretContext(id));
  await sql`update broker.push_secret set key_id = ${keyId}, sealed = ${sealed} where subscription_id = ${id}`.execute(
    on,
  );
}

/** The secret as who has only this key sees it. */
async function openedWith(key: string, { id }: Made): Promise<Buffer> {
  const row = await findPushSecret(db, id);
  if (row === undefined) throw new Error(`no secret of ${id}`);
  if (row.key_id === null) throw new Error('it is plain');
  return createSealer(key).open(row.sealed, row.key_id, pushSecretContext(id));
}

interface Line {
  readonly level: 'info' | 'error';
  readonly fields: unknown;
  readonly text: string | undefined;
}

function reseal(keys: string, options: { chunk?: number; signal?: AbortSignal } = {}) {
  const lines: Line[] = [];
  const note = (level: Line['level']) => (fields: unknown, text?: string) =>
    void lines.push({ level, fields, text });
  const logger = { info: note('info'), error: note('error') };
  return { lines, done: resealPushSecrets(database.another(4).db, { keys, logger, ...options }) };
}

test('everything comes under the first key: what another sealed, and what was plain; again there is nothing to do', async () => {
  const made = [
    ...(await subscriptions(7, oldKey)),
    ...(await subscriptions(3, undefined)),
    ...(await subscriptions(2, newKey)),
  ];
  // a page that is full, one that is not, and one secret alone
  for (const chunk of [3, 4]) {
    const run = reseal(both, { chunk });
    expect(await run.done).toBe(chunk === 3 ? 10 : 0);
    for (const each of made) expect(await openedWith(newKey, each)).toEqual(each.plain);
  }
  const run = reseal(both);
  await run.done;
  expect(run.lines).toEqual([
    {
      level: 'info',
      fields: { resealed: 0, unopened: 0, key_id: createSealer(newKey).keyId },
      text: 'signing secrets sealed anew with the first key: 0',
    },
  ]);
});

test('two at once do each secret once', async () => {
  const made = await subscriptions(60, oldKey);
  const counts = await Promise.all([
    reseal(both, { chunk: 7 }).done,
    reseal(both, { chunk: 10 }).done,
  ]);
  expect(counts[0] + counts[1]).toBe(60);
  for (const each of made) expect(await openedWith(newKey, each)).toEqual(each.plain);
});

test('what is changed or deleted while it is under way is not overwritten, and what is made meanwhile is done too', async () => {
  const [changed, deleted, untouched] = (await subscriptions(3, oldKey)) as [Made, Made, Made];
  const after = { ...changed, plain: Buffer.alloc(32, 9) };
  // between reading the secrets and writing them
  const held = await database.another().db.startTransaction().execute();
  await sql`select from broker.push_secret for update`.execute(held);
  const run = reseal(both);
  await waitingForALock();
  await seal(after, oldKey, held);
  await sql`delete from broker.push_secret where subscription_id = ${deleted.id}`.execute(held);
  const meanwhile = await subscriptions(2, oldKey);
  await held.commit().execute();
  expect(await run.done).toBe(4);
  for (const each of [after, untouched, ...meanwhile]) {
    expect(await openedWith(newKey, each)).toEqual(each.plain);
  }
  expect(await findPushSecret(db, deleted.id)).toBeUndefined();
});

async function waitingForALock(): Promise<void> {
  await expect
    .poll(async () => {
      const { rows } = await sql<{ waiting: number }>`select count(*)::int as waiting
        from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`.execute(
        db,
      );
      return rows[0]?.waiting;
    })
    .toBe(1);
}

test('a secret that no key opens stays as it is, is named, and the others are done all the same', async () => {
  const [lost] = (await subscriptions(1, lostKey)) as [Made];
  const moved = await subscriptions(2, oldKey);
  // of another subscription: the key is known, and it does not open
  const [wrong, source] = moved as [Made, Made];
  await sql`update broker.push_secret p set sealed = o.sealed from broker.push_secret o
    where p.subscription_id = ${wrong.id} and o.subscription_id = ${source.id}`.execute(db);
  const before = [await findPushSecret(db, lost.id), await findPushSecret(db, wrong.id)];
  const good = await subscriptions(3, oldKey);
  const run = reseal(both, { chunk: 1 });
  await expect(run.done).rejects.toThrow(
    `2 signing secrets open with none of the keys in SECRET_ENCRYPTION_KEY, those of ${lost.name}, ${wrong.name}: add the key`,
  );
  const id = createSealer(lostKey).keyId;
  expect(run.lines).toMatchObject([
    { level: 'info', fields: { resealed: 4, unopened: 2 } },
    {
      level: 'error',
      fields: { subscription: lost.name, reason: expect.stringContaining(`id ${id}`) as string },
    },
    { level: 'error', fields: { subscription: wrong.name } },
  ]);
  expect([await findPushSecret(db, lost.id), await findPushSecret(db, wrong.id)]).toEqual(before);
  for (const each of [...good, source]) {
    expect(await openedWith(newKey, each)).toEqual(each.plain);
  }
  await deleteSubscription(db, lost.name);
  await deleteSubscription(db, wrong.name);
  expect(await reseal(both).done).toBe(0);
});

test('of many that no key opens only some are named', async () => {
  await subscriptions(23, lostKey);
  const run = reseal(both);
  await expect(run.done).rejects.toThrow(/^23 signing secrets .* and 3 more: /);
  expect(run.lines.filter(({ level }) => level === 'error')).toHaveLength(20);
});

test('told to stop it ends between two chunks, and the next run does the rest', async () => {
  const made = await subscriptions(4, oldKey);
  const stopping = new AbortController();
  const held = await database.another().db.startTransaction().execute();
  await sql`select from broker.push_secret for update`.execute(held);
  const run = reseal(both, { chunk: 2, signal: stopping.signal });
  await waitingForALock();
  stopping.abort(new Error('told to stop'));
  await held.rollback().execute();
  await expect(run.done).rejects.toThrow('told to stop');
  expect(await reseal(both).done).toBe(2);
  for (const each of made) expect(await openedWith(newKey, each)).toEqual(each.plain);
});

test('while an API still seals with the old key all the time, it says so and ends', async () => {
  const [restless] = (await subscriptions(1, oldKey)) as [Made];
  await sql
    .raw(
      `create function broker.undo() returns trigger language plpgsql as $$ begin
         insert into broker.push_secret (subscription_id, key_id, sealed) values (old.subscription_id, old.key_id, old.sealed);
         return null; end $$;
       create function broker.remove() returns trigger language plpgsql as $$ begin
         delete from broker.push_secret where subscription_id = new.subscription_id; return null; end $$`,
    )
    .execute(db);
  await sql
    .raw(
      `create trigger a_remove after update on broker.push_secret for each row execute function broker.remove();
       create trigger b_undo after update on broker.push_secret for each row execute function broker.undo()`,
    )
    .execute(db);
  const run = reseal(both);
  await expect(run.done).rejects.toThrow(/first every API must have this SECRET_ENCRYPTION_KEY/);
  expect(await findPushSecret(db, restless.id)).toMatchObject({
    key_id: createSealer(oldKey).keyId,
  });
});
