import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type OwnTestApp, startApp, startOwnApp, type TestApp } from '../support/app.ts';
import { query } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';

let one: OwnTestApp;
let two: TestApp;
beforeAll(async () => {
  one = await startOwnApp();
  two = await startApp(one.url);
});
afterAll(async () => {
  await two[Symbol.asyncDispose]();
  await one[Symbol.asyncDispose]();
});

/** Looks until it sees it, and says how long that took. */
async function seenAfterMs(look: () => Promise<boolean>): Promise<number> {
  const began = performance.now();
  await eventually(
    async () => {
      if (!(await look())) throw new Error('not seen yet');
    },
    { intervalMs: 5, timeoutMs: 5000 },
  );
  return performance.now() - began;
}

describe('what one replica changes, the other knows within a second', () => {
  test('a topic that is made, changed and deleted', async () => {
    const publish = async (): Promise<number> =>
      (await two.call('POST /api/v1/topics/orders/events', { type: 'a' })).status;
    // it is remembered that there is none
    expect(await publish()).toBe(404);
    await one.call('PUT /api/v1/topics/orders', { max_backlog: 10 });
    expect(await seenAfterMs(async () => (await publish()) === 202)).toBeLessThan(1000);
    await one.call('PUT /api/v1/topics/orders', { max_backlog: 20 });
    const backlog = async () => (await two.deps.directory.topic('orders'))?.max_backlog;
    expect(await seenAfterMs(async () => (await backlog()) === 20)).toBeLessThan(1000);
    await one.call('DELETE /api/v1/topics/orders');
    expect(await seenAfterMs(async () => (await publish()) === 404)).toBeLessThan(1000);
  });

  test('a subscription', async () => {
    const receive = async (): Promise<number> =>
      (await two.call('POST /api/v1/subscriptions/billing/receive', {})).status;
    expect(await receive()).toBe(404);
    await one.call('PUT /api/v1/topics/billed', {});
    await one.call('PUT /api/v1/subscriptions/billing', { topic: 'billed', type: 'pull' });
    expect(await seenAfterMs(async () => (await receive()) === 200)).toBeLessThan(1000);
    await one.call('DELETE /api/v1/subscriptions/billing');
    expect(await seenAfterMs(async () => (await receive()) === 404)).toBeLessThan(1000);
  });

  test('an API key', async () => {
    const made = await one.call('POST /api/v1/api-keys', { name: 'k', scopes: ['admin'] });
    const { id, key } = made.json;
    const ask = async () => (await two.call('GET /api/v1/topics', undefined, { key })).status;
    expect(await ask()).toBe(200);
    await one.call(`DELETE /api/v1/api-keys/${id}`);
    expect(await seenAfterMs(async () => (await ask()) === 401)).toBeLessThan(1000);
  });
});

test('the replica that makes something knows it at once', async () => {
  for (let n = 0; n < 10; n += 1) {
    const name = `own-${n}`;
    await one.call(`POST /api/v1/topics/${name}/events`, { type: 'a' });
    await one.call(`PUT /api/v1/topics/${name}`, {});
    expect((await one.call(`POST /api/v1/topics/${name}/events`, { type: 'a' })).status).toBe(202);
    await one.call(`DELETE /api/v1/topics/${name}`);
    expect((await one.call(`POST /api/v1/topics/${name}/events`, { type: 'a' })).status).toBe(404);
  }
});

test('when notifications may have been missed, everything is looked up again', async () => {
  const told = new Promise<void>((resolve) => {
    two.deps.wakeups.onChange((_kind, name) => name === 'missed' && resolve());
  });
  await one.call('PUT /api/v1/topics/missed', { max_backlog: 10 });
  await told;
  const backlog = async () => (await two.deps.directory.topic('missed'))?.max_backlog;
  expect(await backlog()).toBe(10);
  // a change that nobody tells of
  await query(one.url, `update broker.topic set max_backlog = 30 where name = 'missed'`);
  expect(await backlog()).toBe(10);
  const cut = await query(
    one.url,
    `select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and query in ('select 1', 'listen broker_changed')`,
  );
  expect(cut.length).toBeGreaterThan(0);
  await eventually(async () => expect(await backlog()).toBe(30), { timeoutMs: 5000 });
});

test('a look-up that a change overtakes is not remembered', async () => {
  await one.call('PUT /api/v1/topics/overtaken', { max_backlog: 10 });
  two.deps.directory.clear();
  const underWay = two.deps.directory.topic('overtaken');
  two.deps.directory.forget('topic', 'overtaken');
  await query(one.url, `update broker.topic set max_backlog = 40 where name = 'overtaken'`);
  await underWay;
  expect((await two.deps.directory.topic('overtaken'))?.max_backlog).toBe(40);
});
