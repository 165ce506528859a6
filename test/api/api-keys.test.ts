import { createHash } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { seedConfiguredKey } from '../../apps/api/auth.ts';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';
import { query } from '../support/database.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
});
afterAll(() => api[Symbol.asyncDispose]());

const probe = 'GET /api/v1/topics';

describe('POST /api-keys', () => {
  test('shows the key once, and keeps nothing but its hash', async () => {
    const body = { name: 'shop', scopes: ['publish'], topics: ['orders*'] };
    const made = await api.call('POST /api/v1/api-keys', body);
    expect(made).toMatchObject({ status: 201, json: { ...body, expires_at: null } });
    const { id, key, prefix } = made.json;
    expect(key).toMatch(/^ebk_[A-Za-z0-9_-]{43}$/);
    expect(key.startsWith(prefix)).toBe(true);
    expect(made.headers['cache-control']).toBe('no-store');
    const listed = await api.call('GET /api/v1/api-keys');
    expect(listed.text).not.toContain(key);
    expect(listed.json.items.at(-1)).toMatchObject({ id, name: 'shop', prefix });
    const [row] = await query(api.url, 'select * from broker.api_key where id = $1', [id]);
    expect(row?.['hash']).toEqual(createHash('sha256').update(key).digest());
    expect(JSON.stringify(row)).not.toContain(key);
  });

  test.each([
    [{ name: '' }, '/name'],
    [{ name: 'ADMIN_API_KEY' }, '/name'],
    [{ name: 'a\tb' }, '/name'],
    [{ scopes: [] }, '/scopes'],
    [{ scopes: ['root'] }, '/scopes/0'],
    [{ scopes: ['publish', 'publish'] }, '/scopes'],
    [{ scopes: 'publish' }, '/scopes'],
    [{ topics: [] }, '/topics'],
    [{ topics: ['a b'] }, '/topics/0'],
    [{ expires_at: 'tomorrow' }, '/expires_at'],
    [{ expires_at: '2020-01-01T00:00:00Z' }, '/expires_at'],
    [{ expires_at: '0000-01-01T00:00:00Z' }, '/expires_at'],
    [{ hash: 'x' }, '/hash'],
  ])('refuses %j', async (members, pointer) => {
    const body = { name: 'bad', scopes: ['publish'], ...members };
    expect(await api.call('POST /api/v1/api-keys', body)).toMatchObject({
      status: 422,
      json: { code: 'invalid_request', errors: [{ pointer }] },
    });
  });
});

test('a key that was deleted opens nothing', async () => {
  const made = await api.call('POST /api/v1/api-keys', { name: 'brief', scopes: ['admin'] });
  const { id, key } = made.json;
  expect(await api.call(probe, undefined, { key })).toMatchObject({ status: 200 });
  expect(await api.call(`DELETE /api/v1/api-keys/${id}`)).toMatchObject({ status: 204 });
  expect(await api.call(probe, undefined, { key })).toMatchObject({ status: 401 });
  for (const gone of [id, '999999', '9999999999']) {
    expect(await api.call(`DELETE /api/v1/api-keys/${gone}`)).toMatchObject({
      status: 404,
      json: { code: 'api_key_not_found' },
    });
  }
});

test('a key expires by the clock of the database, whatever was cached', async () => {
  const [row] = await query<{ at: string }>(
    api.url,
    `select to_char(clock_timestamp() at time zone 'UTC' + interval '1500 ms', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at`,
  );
  const made = await api.call('POST /api/v1/api-keys', {
    name: 'short',
    scopes: ['admin'],
    expires_at: row?.at,
  });
  const { key } = made.json;
  expect(await api.call(probe, undefined, { key })).toMatchObject({ status: 200 });
  await expect
    .poll(async () => (await api.call(probe, undefined, { key })).status, { timeout: 10_000 })
    .toBe(401);
});

test('a narrowed admin makes no keys, sees none, and lists only what its patterns open', async () => {
  const key = await api.makeKey(['admin'], ['mine-*']);
  const as = { key };
  expect(
    await api.call('POST /api/v1/api-keys', { name: 'x', scopes: ['admin'] }, as),
  ).toMatchObject({
    status: 403,
  });
  expect(await api.call('GET /api/v1/api-keys', undefined, as)).toMatchObject({ status: 403 });
  expect(await api.call('GET /api/status', undefined, as)).toMatchObject({ status: 403 });
  expect(await api.call('PUT /api/v1/topics/mine-1', {}, as)).toMatchObject({ status: 201 });
  expect(await api.call('PUT /api/v1/topics/yours', {}, as)).toMatchObject({ status: 403 });
  await api.call('PUT /api/v1/topics/yours', {});
  const pull = { topic: 'yours', type: 'pull' };
  expect(await api.call('PUT /api/v1/subscriptions/s', pull, as)).toMatchObject({ status: 403 });
  await api.call('PUT /api/v1/subscriptions/s', pull);
  // neither may it take over what is another topic's
  expect(
    await api.call('PUT /api/v1/subscriptions/s', { ...pull, topic: 'mine-1' }, as),
  ).toMatchObject({ status: 403 });
  expect(await api.call('DELETE /api/v1/subscriptions/s', undefined, as)).toMatchObject({
    status: 403,
  });
  const topics = await api.call(probe, undefined, as);
  expect(topics.json.items.map((item: { name: string }) => item.name)).toEqual(['mine-1']);
  const subscriptions = await api.call('GET /api/v1/subscriptions', undefined, as);
  expect(subscriptions.json.items).toEqual([]);
  const { json } = await api.call('POST /api/v1/subscriptions/s/dlq/redrive', {});
  expect(await api.call(`GET /api/v1/jobs/${json.job_id}`, undefined, as)).toMatchObject({
    status: 403,
  });
});

describe('the key of the configuration', () => {
  test('is in the list as the one of this name that has no expiry; its place is taken, not shared', async () => {
    const shown = async () => {
      const { json } = await api.call('GET /api/v1/api-keys');
      return (json.items as { name: string; prefix: string; expires_at: string | null }[])
        .filter(({ name }) => name === 'ADMIN_API_KEY')
        .map(({ prefix, expires_at }) => [prefix, expires_at === null]);
    };
    expect(await shown()).toEqual([['test', true]]);
    const young = 'young-configured-key';
    await seedConfiguredKey(api.db, young);
    await expect
      .poll(async () => (await api.call(probe, undefined, { key: young })).status)
      .toBe(200);
    expect(await shown()).toEqual([
      ['test', false],
      ['youn', true],
    ]);
    // nobody else has seeded what the other tests go on with
    await seedConfiguredKey(api.db, api.adminKey, { reinstates: true });
  });
});
