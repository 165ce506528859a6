import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sampleBacklog } from '#db/backlog.ts';
import { type OwnTestApp, startApp, startOwnApp } from '../support/app.ts';

const browser = 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
  await api.call('PUT /api/v1/topics/orders', { max_backlog: 2 });
  await api.call('PUT /api/v1/subscriptions/billing', { topic: 'orders', type: 'pull' });
  await api.call('POST /api/v1/topics/orders/events', [{ type: 'a' }, { type: 'a' }]);
  await sql`update broker.backlog_sampling set sampled_at = '-infinity'`.execute(api.db);
  await sampleBacklog(api.db);
});
afterAll(() => api[Symbol.asyncDispose]());

const basic = (key: string, name = ''): Record<string, string> => ({
  authorization: `Basic ${Buffer.from(`${name}:${key}`).toString('base64')}`,
});

function look(headers: Record<string, string>, key: string | null = null) {
  return api.call('GET /api/status', undefined, { key, headers });
}

describe('JSON', () => {
  test('says what is wrong, the worst first, and what waits', async () => {
    const { status, headers, json } = await look({ accept: '*/*' }, api.adminKey);
    expect(status).toBe(200);
    expect(headers['content-type']).toMatch(/^application\/json/);
    expect(headers['vary']).toMatch(/\baccept\b/);
    expect(json.problems.slice(0, 2)).toEqual([
      { code: 'no_leader', message: expect.stringMatching(/^No reaper runs: leases/) },
      {
        code: 'topic_full',
        message:
          'The topic orders is full: producers get 503. billing has 2 events waiting, 2 may.',
      },
    ]);
    expect(json.subscriptions_total).toBe(1);
    expect(json.subscriptions).toMatchObject([
      { topic: 'orders', subscription: 'billing', waiting_events: 2, max_backlog: 2 },
    ]);
    expect(json).toMatchObject({ leader: { holder: null, term: '0' }, processes: [] });
  });

  test('is the answer to who says nothing, and to an API client whose key is wrong', async () => {
    expect((await look({}, api.adminKey)).json.problems).toHaveLength(2);
    const refused = await look({ accept: 'application/json' }, 'ebk_wrong');
    expect(refused).toMatchObject({ status: 401, json: { code: 'unauthorized' } });
    expect(refused.headers['www-authenticate']).toMatch(/^Bearer /);
    expect(refused.headers['vary']).toMatch(/\baccept\b/);
  });
});

describe('a browser', () => {
  test('gets a page, and with it only what the page needs', async () => {
    const { status, headers, text } = await look({ accept: browser, ...basic(api.adminKey) });
    expect(status).toBe(200);
    expect(headers['content-type']).toBe('text/html; charset=utf-8');
    expect(headers['cache-control']).toBe('no-store');
    expect(headers['content-security-policy']).toMatch(
      /^default-src 'none'; style-src 'sha256-[^']+'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$/,
    );
    expect(headers['x-content-type-options']).toBe('nosniff');
    expect(text).toContain('<h1 class="bad">2 problems</h1>');
    expect(text).toContain('The topic orders is full: producers get 503.');
  });

  test('is asked for a key, and may send it as a password with any name', async () => {
    for (const wrong of [{}, basic('ebk_wrong'), { authorization: 'Basic !' }, basic('')]) {
      const refused = await look({ accept: browser, ...wrong });
      expect(refused.status).toBe(401);
      expect(refused.headers['www-authenticate']).toBe(
        'Basic realm="event-broker", charset="UTF-8"',
      );
      expect(refused.headers['content-type']).toMatch(/^text\/html/);
      expect(refused.text).toContain('<code>unauthorized</code>');
      expect(refused.text).not.toContain('orders');
    }
    expect((await look({ accept: browser, ...basic(api.adminKey, 'admin') })).status).toBe(200);
    expect((await look({ accept: browser }, api.adminKey)).status).toBe(200);
  });

  test('is told in words when its key opens something else', async () => {
    const key = await api.makeKey(['publish']);
    const narrowed = await api.makeKey(['admin'], ['orders']);
    for (const each of [key, narrowed]) {
      const refused = await look({ accept: browser, ...basic(each) });
      expect(refused.status).toBe(403);
      expect(refused.text).toContain('<code>forbidden</code>');
    }
  });

  test('is told in words that it failed, and not why', async () => {
    await using other = await startApp(api.url);
    const headers = { accept: browser, ...basic(other.adminKey) };
    const call = () => other.call('GET /api/status', undefined, { key: null, headers });
    // the key is known from here on
    expect((await call()).status).toBe(200);
    await sql`alter table broker.backlog_sampling rename to elsewhere`.execute(api.db);
    const failed = await call();
    await sql`alter table broker.elsewhere rename to backlog_sampling`.execute(api.db);
    expect(failed.status).toBe(500);
    expect(failed.text).toContain('<code>internal_error</code>');
    expect(failed.text).not.toContain('backlog_sampling');
  });
});

test('Basic opens nothing else: no browser can be made to change anything', async () => {
  for (const route of [
    'GET /api/v1/topics',
    'DELETE /api/v1/topics/orders',
    'GET /api/v1/api-keys',
  ]) {
    const headers = { accept: browser, ...basic(api.adminKey) };
    const answer = await api.call(route, undefined, { key: null, headers });
    expect(answer).toMatchObject({ status: 401, json: { code: 'unauthorized' } });
    expect(answer.headers['www-authenticate']).toMatch(/^Bearer /);
  }
});

test('wrong passwords are limited as wrong keys are', async () => {
  await using limited = await startApp(api.url, {
    app: { authFailures: { max: 2, windowMs: 60_000 } },
  });
  const statuses: number[] = [];
  for (let n = 0; n < 3; n += 1) {
    const headers = { accept: browser, ...basic(`wrong-${n}`) };
    statuses.push(
      (await limited.call('GET /api/status', undefined, { key: null, headers })).status,
    );
  }
  expect(statuses).toEqual([401, 401, 429]);
});
