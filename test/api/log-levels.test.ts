import { afterAll, beforeAll, expect, test } from 'vitest';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
});
afterAll(() => api[Symbol.asyncDispose]());

const put = (body: unknown, key?: string) =>
  api.call('PUT /api/v1/log-levels', body, key === undefined ? {} : { key });

test('an admin sets a level for a while, sees it, and ends it', async () => {
  expect((await api.call('GET /api/v1/log-levels')).json).toEqual({ items: [] });
  const set = await put({ service: 'worker', level: 'debug', duration_seconds: 60 });
  expect(set).toMatchObject({
    status: 200,
    json: { items: [{ service: 'worker', level: 'debug', until: expect.any(String) as string }] },
  });
  expect(Date.parse(set.json.items[0].until)).toBeGreaterThan(Date.now() - 3_600_000);
  await put({ level: 'warn' });
  const { json } = await api.call('GET /api/v1/log-levels');
  expect(json.items.map((item: { service: string }) => item.service)).toEqual(['*', 'worker']);
  await put({ level: 'warn', duration_seconds: 0 });
  const ended = await put({ service: 'worker', level: 'info', duration_seconds: 0 });
  expect(ended.json).toEqual({ items: [] });
});

test.each([
  [{ level: 'silent' }, '/level'],
  [{}, '/level'],
  [{ level: 'debug', service: 'postgres' }, '/service'],
  [{ level: 'debug', duration_seconds: 86_401 }, '/duration_seconds'],
  [{ level: 'debug', duration_seconds: -1 }, '/duration_seconds'],
  [{ level: 'debug', minutes: 1 }, '/minutes'],
])('%j is refused, with a pointer', async (body, pointer) => {
  expect(await put(body)).toMatchObject({
    status: 422,
    json: { code: 'invalid_request', errors: [{ pointer }] },
  });
});

test('it is for admins of all topics', async () => {
  const narrowed = await api.makeKey(['admin'], ['orders']);
  const consumer = await api.makeKey(['publish', 'consume']);
  for (const key of [narrowed, consumer]) {
    expect((await put({ level: 'debug' }, key)).status).toBe(403);
    expect((await api.call('GET /api/v1/log-levels', undefined, { key })).status).toBe(403);
  }
});
