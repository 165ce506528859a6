/**
 * Goal: SECRET_ENCRYPTION_KEY gets another value under load, and every event is delivered, signed with the secret of its subscription, at
 * its first attempt; a worker that cannot open a secret leaves that subscription's events alone, and counts no attempt.
 *
 * Method: api and worker processes are replaced one by one in the order of SECURITY.md; endpoints in the test's own process check
 * each signature. Then the wrong order.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';

import { pushSecretContext } from '#db/push-secrets.ts';
import { createSealer } from '#runtime/sealer.ts';
import { BrokerProcess, type Service } from '#test/support/cluster.ts';
import { cloneDatabase, query, type TestDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { HttpClient } from '#test/support/http-client.ts';
import { type PushEndpoint, PushReceiver } from '#test/support/push-receiver.ts';
import { asRole } from '#test/support/roles.ts';

const adminKey = 'test-admin-key-0123456789';
const [oldKey, newKey] = [1, 2].map((n) => Buffer.alloc(32, n).toString('base64')) as [
  string,
  string,
];
const both = `${newKey},${oldKey}`;

let database: TestDatabase;
let receiver: PushReceiver;
let processes: BrokerProcess[];
let deaths: string[];
let http: HttpClient;
beforeEach(async () => {
  database = await cloneDatabase();
  receiver = await PushReceiver.start();
  http = new HttpClient(adminKey);
  processes = [];
  deaths = [];
});
afterEach(async () => {
  await Promise.all(processes.map((each) => each.stop()));
  receiver[Symbol.dispose]();
  http[Symbol.dispose]();
  await database[Symbol.asyncDispose]();
});

async function start(service: Service, keys: string): Promise<BrokerProcess> {
  const name = `${service}-${processes.length + 1}`;
  const env = {
    DATABASE_URL: database.url,
    ADMIN_API_KEY: adminKey,
    SECRET_ENCRYPTION_KEY: keys,
    ALLOW_PRIVATE_TARGETS: '127.0.0.0/8,::1',
    INSTANCE: name,
    NODE_ENV: 'test',
  };
  const started = new BrokerProcess({ service, name, env }, (message) => deaths.push(message));
  processes.push(started);
  await started.start();
  await started.ready();
  return started;
}

/** As an update does: the new one first, then the old one is told to stop. */
async function replace(old: BrokerProcess, keys: string): Promise<BrokerProcess> {
  const young = await start(old.service, keys);
  await old.stop();
  return young;
}

async function migrate(keys: string): Promise<{ code: number; output: string }> {
  const databaseUrl = await asRole('owner', database.url);
  return new Promise((resolve) => {
    const cwd = join(import.meta.dirname, '../..');
    const env = {
      PATH: process.env['PATH'],
      DATABASE_URL: databaseUrl,
      SECRET_ENCRYPTION_KEY: keys,
    };
    execFile(process.execPath, ['apps/migrate/main.ts'], { cwd, env }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), output: stdout + stderr }),
    );
  });
}

/** A push subscription of this name on the topic `orders`, and its endpoint. */
async function hook(api: BrokerProcess, name: string): Promise<PushEndpoint> {
  const endpoint = receiver.endpoint(`/${name}`);
  const body = { topic: 'orders', type: 'push', push: { endpoint: endpoint.url } };
  const url = `${api.url}/api/v1/subscriptions/${name}`;
  const answer = await http.call<{ push: { secret: string } }>(url, { method: 'PUT', body });
  endpoint.secret = answer.push.secret;
  return endpoint;
}

async function publish(api: BrokerProcess): Promise<string> {
  const url = `${api.url}/api/v1/topics/orders/events`;
  return (await http.call<{ id: string }>(url, { body: { type: 'test' } })).id;
}

async function keysInUse(): Promise<(string | null)[]> {
  const rows = await query<{ key_id: string | null }>(
    database.url,
    'select distinct key_id from broker.push_secret',
  );
  return rows.map(({ key_id }) => key_id);
}

/** Every event that came to it has come once, at its first attempt, with a good signature; these are among them. */
function expectFirstAttempts(endpoint: PushEndpoint, ids: readonly string[]): void {
  expect(endpoint.badSignatures).toEqual([]);
  expect(endpoint.verified).toBe(endpoint.requests.length);
  expect(endpoint.eventIds).toEqual(expect.arrayContaining([...ids]));
  expect(endpoint.requests.filter(({ attempt }) => attempt !== 1)).toEqual([]);
  expect(endpoint.requests).toHaveLength(endpoint.eventIds.length);
}

test('in the order worker, api, migrate, then the new key alone: nothing waits, fails or dies', async () => {
  let api = await start('api', oldKey);
  let worker = await start('worker', oldKey);
  await http.call(`${api.url}/api/v1/topics/orders`, { method: 'PUT', body: {} });
  const first = await hook(api, 'first');
  const ids: string[] = [];
  let isOver = false;
  const load = (async () => {
    while (!isOver) ids.push(await publish(api));
  })();
  /** Both workers are made to look the secrets up, whatever they remember. */
  const deliverMore = async (): Promise<void> => {
    const sent = ids.length;
    await eventually(() => expect(ids.length).toBeGreaterThan(sent + 20));
    await first.arrived(ids.length - 10, { timeoutMs: 20_000 });
  };

  await deliverMore();
  worker = await replace(worker, both);
  await deliverMore();
  // the load goes to whatever answers
  const oldApi = api;
  api = await start('api', both);
  await hook(oldApi, 'second');
  const third = await hook(api, 'third');
  await oldApi.stop();
  expect(await keysInUse()).toHaveLength(2);
  await deliverMore();
  const migrated = await migrate(both);
  expect(migrated).toMatchObject({ code: 0 });
  expect(migrated.output).toContain('signing secrets sealed anew with the first key: 2');
  expect(await keysInUse()).toEqual([createSealer(newKey).keyId]);
  await deliverMore();
  worker = await replace(worker, newKey);
  const middleApi = api;
  api = await start('api', newKey);
  await middleApi.stop();
  await deliverMore();
  isOver = true;
  await load;
  await first.arrived(ids.length, { timeoutMs: 20_000 });
  const last = ids.slice(-20);
  await third.arrived(20);

  expectFirstAttempts(first, ids);
  expectFirstAttempts(third, last);
  const rows = await query(database.url, 'select from broker.dead_letter');
  expect(rows).toEqual([]);
  for (const each of processes) {
    expect(each.logs.filter(({ level }) => level === 'error')).toEqual([]);
  }
  expect(deaths).toEqual([]);
});

test('a worker without the right key leaves the events of a secret alone, delivers the others, and another worker takes them', async () => {
  const api = await start('api', oldKey);
  await http.call(`${api.url}/api/v1/topics/orders`, { method: 'PUT', body: {} });
  const foreign = await hook(api, 'foreign');
  expect(await migrate(both)).toMatchObject({ code: 0 });
  const own = await hook(api, 'own');
  const ids = [await publish(api), await publish(api), await publish(api)];

  const behind = await start('worker', oldKey);
  await own.arrived(3);
  const complaints = (): number =>
    behind.logs.filter(({ msg }) => msg === 'its signing secret cannot be opened').length;
  await eventually(() => expect(complaints()).toBeGreaterThan(0));
  // while more of it comes, it neither claims what it cannot send nor says so each time
  for (let n = 0; n < 20; n += 1) ids.push(await publish(api));
  await own.arrived(ids.length);
  expect(complaints()).toBeLessThan(5);
  expect(foreign.requests).toEqual([]);
  const waiting = await query(
    database.url,
    `select sum(event_count)::int as events, max(attempt)::int as attempts, count(lease_expires_at)::int as leases,
       (select count(*)::int from broker.dead_letter) as dead from broker.queue`,
  );
  expect(waiting).toEqual([{ events: ids.length, attempts: 0, leases: 0, dead: 0 }]);

  await start('worker', newKey);
  await foreign.arrived(ids.length);
  // each of the two gets what only the other could send, and both get more
  for (let n = 0; n < 50; n += 1) ids.push(await publish(api));
  await Promise.all([foreign.arrived(ids.length), own.arrived(ids.length)]);
  expectFirstAttempts(foreign, ids);
  expectFirstAttempts(own, ids);
});

test('migrate ends with 1 and names the subscription where a secret opens with no key, when the database is up to date', async () => {
  const api = await start('api', oldKey);
  await http.call(`${api.url}/api/v1/topics/orders`, { method: 'PUT', body: {} });
  const lost = await hook(api, 'lost');
  const good = await hook(api, 'good');
  const [row] = await query<{ subscription_id: number; key_id: string; sealed: Buffer }>(
    database.url,
    `select subscription_id, key_id, sealed from broker.push_secret p join broker.subscription s on s.id = p.subscription_id
      where s.name = 'good'`,
  );
  // what was sealed for another subscription does not open for this one
  await query(
    database.url,
    `update broker.push_secret set sealed = $1 where subscription_id <> $2`,
    [row!.sealed, row!.subscription_id],
  );
  const migrated = await migrate(both);
  expect(migrated.code).toBe(1);
  expect(migrated.output).toContain('the database is up to date');
  expect(migrated.output).toMatch(
    /migrate cannot start: 1 signing secrets open with none of the keys in SECRET_ENCRYPTION_KEY, those of lost:/,
  );
  expect(migrated.output).not.toContain(newKey);
  const [after] = await query<{ key_id: string; sealed: Buffer }>(
    database.url,
    `select key_id, sealed from broker.push_secret where subscription_id = $1`,
    [row!.subscription_id],
  );
  const context = pushSecretContext(row!.subscription_id);
  const opened = createSealer(newKey).open(after!.sealed, after!.key_id, context);
  expect(`whsec_${opened.toString('base64')}`).toBe(good.secret);
  expect(lost.secret).not.toBe(good.secret);
});
