// Goal: what is remembered of a push subscription is never older than the last change that was heard.
import type { KyselyPlugin } from 'kysely';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { announceChange, createWakeups, type Wakeups } from '#db/wakeups.ts';
import { createSealer } from '#runtime/sealer.ts';
import { PushDirectory } from '../../apps/worker/push-directory.ts';
import { aPushSubscription } from '../support/a-push-subscription.ts';
import { eventually } from '../support/eventually.ts';
import { aTopic } from '../support/factory.ts';
import { untilListening } from '../support/until-listening.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
let db: Database;
let wakeups: Wakeups;
beforeEach(async () => {
  database = await openVerbDatabase();
  db = database.db;
  await aTopic(db, { name: 'orders' });
  wakeups = createWakeups({ db, directUrl: database.url, applicationName: 'wakeups' });
  await untilListening(wakeups);
});
afterEach(async () => {
  await wakeups.close();
  await database[Symbol.asyncDispose]();
});

function open(options: { readonly db?: Database; readonly entriesMax?: number } = {}) {
  const changed: number[] = [];
  const errors: string[] = [];
  const directory = new PushDirectory({
    db,
    wakeups,
    sealer: createSealer(undefined),
    logger: { error: (_: unknown, line?: string) => void errors.push(line ?? '') },
    onChange: (id) => void changed.push(id),
    ...options,
  });
  return { directory, changed };
}

const endpointOf = async (directory: PushDirectory, id: number): Promise<string | undefined> =>
  (await directory.get(id))?.endpoint;

/** Changes an endpoint as the API does, and waits until that was heard. */
async function move(name: string, endpoint: string): Promise<void> {
  let isHeard = false;
  // behind the directory's own listener
  const unsubscribe = wakeups.onChange((_, changed) => (isHeard ||= changed === name));
  await db
    .updateTable('subscription')
    .set({ push_endpoint: endpoint })
    .where('name', '=', name)
    .execute();
  await announceChange(db, 'subscription', name);
  await eventually(() => expect(isHeard).toBe(true));
  unsubscribe();
}

test('a change is seen at once', async () => {
  const { id, name } = await aPushSubscription(db, { topic: 'orders' });
  const { directory, changed } = open();
  expect(await endpointOf(directory, id)).toBe('https://hooks.example/orders');
  await move(name, 'https://other.example/');
  expect(changed).toEqual([id]);
  expect(await endpointOf(directory, id)).toBe('https://other.example/');
  directory[Symbol.dispose]();
});

test('a change that is heard while its subscription is looked up for the first time is not missed', async () => {
  const { id, name } = await aPushSubscription(db, { topic: 'orders' });
  const answered = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  const slow: KyselyPlugin = {
    transformQuery: ({ node }) => node,
    // the row is read by now, and on its way
    async transformResult({ result }) {
      answered.resolve();
      await gate.promise;
      return result;
    },
  };
  const { directory } = open({ db: db.withPlugin(slow) });
  const first = endpointOf(directory, id);
  await answered.promise;
  await move(name, 'https://other.example/');
  gate.resolve();
  expect(await first).toBe('https://other.example/');
  expect(await endpointOf(directory, id)).toBe('https://other.example/');
  directory[Symbol.dispose]();
});

test('of more than it knows at a time, changes of those that were looked up last are heard, and the others not remembered', async () => {
  const [one, two, three] = [
    await aPushSubscription(db, { topic: 'orders' }),
    await aPushSubscription(db, { topic: 'orders' }),
    await aPushSubscription(db, { topic: 'orders' }),
  ];
  const { directory, changed } = open({ entriesMax: 2 });
  await directory.get(one.id);
  await directory.get(two.id);
  // it is looked up again, so it is not the oldest any more
  await move(one.name, 'https://moved.example/1');
  await directory.get(one.id);
  await directory.get(three.id);
  changed.length = 0;
  await move(one.name, 'https://moved.example/2');
  await move(two.name, 'https://moved.example/3');
  await move(three.name, 'https://moved.example/4');
  expect(changed).toEqual([one.id, three.id]);
  const endpoints = [];
  for (const { id } of [one, two, three]) endpoints.push(await endpointOf(directory, id));
  expect(endpoints).toEqual([2, 3, 4].map((n) => `https://moved.example/${n}`));
  directory[Symbol.dispose]();
});
