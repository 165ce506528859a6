/**
 * Goal: ADMIN_API_KEY gets another value, one replica after the other, and no request with either key is refused before the old one
 * is deleted; from then on it is gone, whichever replica starts when.
 *
 * Method: real replicas on one database, of the old configuration and of the new, started and stopped in both orders.
 */
import { afterEach, beforeEach, expect, test } from 'vitest';

import { BrokerProcess } from '#test/support/cluster.ts';
import { cloneDatabase, type TestDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { HttpClient } from '#test/support/http-client.ts';

const oldKey = 'the-old-admin-key-0123456789';
const newKey = 'the-new-admin-key-0123456789';

let database: TestDatabase;
let replicas: BrokerProcess[];
let deaths: string[];
beforeEach(async () => {
  database = await cloneDatabase();
  replicas = [];
  deaths = [];
});
afterEach(async () => {
  await Promise.all(replicas.map((replica) => replica.stop()));
  await database[Symbol.asyncDispose]();
});

/** A replica that is configured with this key. */
async function start(key: string): Promise<BrokerProcess> {
  const name = `api-${replicas.length + 1}`;
  const env = { DATABASE_URL: database.url, ADMIN_API_KEY: key, INSTANCE: name, NODE_ENV: 'test' };
  const options = { service: 'api', name, env } as const;
  const replica = new BrokerProcess(options, (message) => deaths.push(message));
  replicas.push(replica);
  await replica.start();
  await replica.ready();
  return replica;
}

async function call(replica: BrokerProcess, key: string, route = 'GET /api/v1/api-keys') {
  const [method = '', path = ''] = route.split(' ');
  using client = new HttpClient(key);
  return await client.send(`${replica.url}${path}`, { method });
}

/** What the old key and the new one are answered with, by each of these replicas. */
async function statuses(...asked: BrokerProcess[]): Promise<[number, number][]> {
  return Promise.all(
    asked.map(async (replica): Promise<[number, number]> => [
      (await call(replica, oldKey)).status,
      (await call(replica, newKey)).status,
    ]),
  );
}

/** The same of each of these replicas, once their caches have heard of it. */
async function expectStatuses(expected: [number, number], ...asked: BrokerProcess[]) {
  await eventually(async () => expect(await statuses(...asked)).toEqual(asked.map(() => expected)));
}

interface ListedKey {
  readonly id: string;
  readonly name: string;
  readonly expires_at: string | null;
}

/** What is to be done when all replicas have the new key: of those that were seeded, all are deleted but the one without expiry. */
async function deleteOldKeys(replica: BrokerProcess): Promise<void> {
  const { items } = (await call(replica, newKey)).json as { items: ListedKey[] };
  const seeded = items.filter(({ name }) => name === 'ADMIN_API_KEY');
  expect(seeded.map(({ expires_at }) => expires_at === null)).toEqual([false, true]);
  const answer = await call(replica, newKey, `DELETE /api/v1/api-keys/${seeded[0]!.id}`);
  expect(answer.status).toBe(204);
}

const said = (replica: BrokerProcess, words: string): number =>
  replica.logs.filter(({ msg }) => msg?.includes(words)).length;
const notSeededAgain = 'it was not seeded again';
const warnings = (replica: BrokerProcess): number => said(replica, notSeededAgain);

/** A replica is ready a moment before its lines have come through the pipe. */
async function expectSaid(replica: BrokerProcess, words: string): Promise<void> {
  await expect.poll(() => said(replica, words)).toBe(1);
}

test('one replica after the other: both keys open everything on all of them until the old one is deleted', async () => {
  const [first, second] = [await start(oldKey), await start(oldKey)];
  // that the new one is not known is remembered, and must not be for long
  await expectStatuses([200, 401], first, second);
  const third = await start(newKey);
  await expectSaid(third, 'the one before goes on until it expires, or is deleted');
  await expectStatuses([200, 200], first, second, third);
  await first.stop();
  const fourth = await start(newKey);
  expect(await statuses(second, third, fourth)).toEqual(Array(3).fill([200, 200]));

  // on any replica, also one of the old configuration
  await deleteOldKeys(second);
  await expectStatuses([401, 200], second, third, fourth);
  expect([third, fourth].map(warnings)).toEqual([0, 0]);
});

test('a replica of the old configuration that starts late takes nothing away and brings nothing back', async () => {
  const before = await start(oldKey);
  const after = await start(newKey);
  await before.stop();
  // before the old one is deleted: it was restarted, or rolled back
  const again = await start(oldKey);
  await expectSaid(again, notSeededAgain);
  await expectStatuses([200, 200], after, again);

  await deleteOldKeys(after);
  await again.stop();
  const late = await start(oldKey);
  await expectSaid(late, notSeededAgain);
  await expectStatuses([401, 200], after, late);
  await after.stop();
  const restarted = await start(newKey);
  expect(warnings(restarted)).toBe(0);
  await expectStatuses([401, 200], late, restarted);
});
