import { connect } from 'node:net';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type OwnTestApp, startApp, startOwnApp } from '../support/app.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp({ env: { REQUEST_TIMEOUT_MS: '1000' } });
  await api.call('PUT /api/v1/topics/orders', {});
  await api.call('PUT /api/v1/topics/other', {});
  await api.call('PUT /api/v1/subscriptions/billing', { topic: 'orders', type: 'pull' });
  await api.call('PUT /api/v1/subscriptions/else', { topic: 'other', type: 'pull' });
});
afterAll(() => api[Symbol.asyncDispose]());

describe('keys', () => {
  test.each([
    [{}, /^Bearer realm="event-broker"$/],
    [{ authorization: '' }, /^Bearer realm="event-broker"/],
    [{ authorization: 'Basic YTpi' }, /error="invalid_request"/],
    [{ authorization: 'Bearer' }, /error="invalid_request"/],
    [{ authorization: 'Bearer a b' }, /error="invalid_request"/],
    [{ authorization: `Bearer ${'x'.repeat(300)}` }, /error="invalid_request"/],
    [{ authorization: 'Bearer ebk_wrong' }, /error="invalid_token"/],
  ])('401 for %j', async (headers, challenge) => {
    const answer = await api.call('GET /api/v1/topics', undefined, { key: null, headers });
    expect(answer).toMatchObject({ status: 401, json: { code: 'unauthorized', status: 401 } });
    expect(answer.headers['www-authenticate']).toMatch(challenge);
    expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
  });

  test('the scheme is read in any case', async () => {
    const headers = { authorization: `bearer ${api.adminKey}` };
    expect(await api.call('GET /api/v1/topics', undefined, { key: null, headers })).toMatchObject({
      status: 200,
    });
  });

  const routes = [
    ['publish', 'POST /api/v1/topics/orders/events', { type: 'a' }],
    ['consume', 'GET /api/v1/topics/orders/events/1', undefined],
    ['consume', 'GET /api/v1/topics/orders/events/1/deliveries', undefined],
    ['consume', 'POST /api/v1/subscriptions/billing/receive', {}],
    ['consume', 'POST /api/v1/subscriptions/billing/ack', { lease_ids: ['x'] }],
    ['consume', 'POST /api/v1/subscriptions/billing/nack', { leases: [{ lease_id: 'x' }] }],
    ['consume', 'GET /api/v1/subscriptions/billing', undefined],
    ['consume', 'GET /api/v1/subscriptions/billing/dlq', undefined],
    ['consume', 'GET /api/v1/subscriptions/billing/dlq/1', undefined],
    ['admin', 'DELETE /api/v1/subscriptions/billing/dlq/1', undefined],
    ['admin', 'DELETE /api/v1/subscriptions/billing/dlq', undefined],
    ['admin', 'POST /api/v1/subscriptions/billing/dlq/redrive', {}],
    ['admin', 'PUT /api/v1/subscriptions/billing', { topic: 'orders', type: 'pull' }],
    ['admin', 'PATCH /api/v1/subscriptions/billing', {}],
    ['admin', 'POST /api/v1/subscriptions/billing/pause', {}],
    ['admin', 'POST /api/v1/subscriptions/billing/resume', {}],
    ['admin', 'PUT /api/v1/topics/orders', {}],
    ['admin', 'GET /api/v1/topics/orders', undefined],
    ['admin', 'GET /api/v1/topics', undefined],
    ['admin', 'GET /api/v1/subscriptions', undefined],
    ['admin', 'GET /api/v1/api-keys', undefined],
    ['admin', 'GET /api/v1/jobs/999999', undefined],
    ['admin', 'GET /api/status', undefined],
  ] as const;

  test('each scope opens its routes and no others', async () => {
    for (const scope of ['publish', 'consume', 'admin'] as const) {
      const key = await api.makeKey([scope]);
      for (const [needed, route, body] of routes) {
        const { status } = await api.call(route, body, { key });
        const isOpen = scope === 'admin' || scope === needed;
        expect(`${scope} ${route} ${status === 403}`).toBe(`${scope} ${route} ${!isOpen}`);
        expect(status).not.toBe(500);
      }
    }
  });

  test('every route refuses who has no key, but for those that are open', async () => {
    for (const [, route, body] of routes) {
      expect((await api.call(route, body, { key: null })).status).toBe(401);
    }
    for (const [route, status] of [
      ['GET /api/health/live', 204],
      ['GET /api/health', 200],
      ['GET /api/metrics', 200],
      ['GET /api/openapi.json', 200],
    ] as const) {
      expect((await api.call(route, undefined, { key: null })).status).toBe(status);
    }
  });

  test('a key that is narrowed to topics opens those, and the subscriptions of those', async () => {
    const key = await api.makeKey(['publish', 'consume'], ['ord*s']);
    const status = async (route: string, body?: unknown): Promise<number> =>
      (await api.call(route, body, { key })).status;
    expect(await status('POST /api/v1/topics/orders/events', { type: 'a' })).toBe(202);
    expect(await status('POST /api/v1/topics/other/events', { type: 'a' })).toBe(403);
    expect(await status('POST /api/v1/topics/nowhere/events', { type: 'a' })).toBe(403);
    expect(await status('GET /api/v1/topics/other/events/1')).toBe(403);
    expect(await status('POST /api/v1/subscriptions/billing/receive', {})).toBe(200);
    expect(await status('POST /api/v1/subscriptions/else/receive', {})).toBe(403);
    expect(await status('GET /api/v1/subscriptions/else/dlq')).toBe(403);
    const admin = await api.makeKey(['admin'], ['ord*s']);
    for (const route of ['PATCH', 'POST /pause', 'POST /resume']) {
      const [method, verb = ''] = route.split(' ');
      for (const [name, expected] of [
        ['billing', 200],
        ['else', 403],
      ]) {
        const changed = await api.call(
          `${method} /api/v1/subscriptions/${name}${verb}`,
          {},
          { key: admin },
        );
        expect(`${route} ${name} ${changed.status}`).toBe(`${route} ${name} ${expected}`);
      }
    }
    expect(await status('POST /api/v1/subscriptions/nowhere/receive', {})).toBe(404);
  });
});

describe('limits', () => {
  test('wrong keys are limited by address; who has a good one goes on', async () => {
    await using limited = await startApp(api.url, {
      env: { TRUST_PROXY: '127.0.0.1' },
      app: { authFailures: { max: 3, windowMs: 60_000 } },
    });
    const from = (address: string, key: string) =>
      limited.call('GET /api/v1/topics', undefined, {
        key,
        headers: { 'x-forwarded-for': address },
      });
    expect((await from('192.0.2.1', limited.adminKey)).status).toBe(200);
    for (let n = 0; n < 3; n += 1) expect((await from('192.0.2.1', `wrong-${n}`)).status).toBe(401);
    const refused = await from('192.0.2.1', 'wrong-again');
    expect(refused).toMatchObject({ status: 429, json: { code: 'rate_limited' } });
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    expect((await from('192.0.2.1', limited.adminKey)).status).toBe(200);
    expect((await from('192.0.2.2', 'wrong')).status).toBe(401);
  });

  test('regression: wrong keys of one address shut out good ones there once any key is changed', async () => {
    await using limited = await startApp(api.url, {
      app: { authFailures: { max: 1, windowMs: 60_000 } },
    });
    const ask = async (key: string) =>
      (await limited.call('GET /api/v1/topics', undefined, { key })).status;
    expect(await ask(limited.adminKey)).toBe(200);
    expect(await ask('wrong')).toBe(401);
    expect(await ask('wrong-again')).toBe(429);
    await limited.makeKey(['publish']);
    expect(await ask(limited.adminKey)).toBe(200);
  });

  test('requests are limited by key, with a problem and headers; health is not', async () => {
    await using limited = await startApp(api.url, {
      env: { ENABLE_RATE_LIMIT: 'true', RATE_LIMIT_MAX: '3', RATE_LIMIT_WINDOW_MS: '60000' },
    });
    const ask = () => limited.call('GET /api/v1/topics');
    const first = await ask();
    expect(first.headers).toMatchObject({
      'ratelimit-limit': '3',
      'ratelimit-remaining': '2',
      'ratelimit-reset': '60',
    });
    await ask();
    await ask();
    const refused = await ask();
    expect(refused).toMatchObject({ status: 429, json: { code: 'rate_limited', status: 429 } });
    expect(refused.headers['content-type']).toMatch(/^application\/problem\+json/);
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    const another = await api.makeKey(['admin']);
    expect((await limited.call('GET /api/v1/topics', undefined, { key: another })).status).toBe(
      200,
    );
    for (let n = 0; n < 5; n += 1) {
      expect((await limited.call('GET /api/health', undefined, { key: null })).status).toBe(200);
    }
  });

  test('a body over the limit is 413', async () => {
    const answer = await api.call('PUT /api/v1/topics/orders', `"${'x'.repeat(70_000)}"`);
    expect(answer).toMatchObject({ status: 413, json: { code: 'body_too_large' } });
  });

  test.each(['text/plain', 'application/xml', 'application/json-patch+json', 'nonsense'])(
    '%s is 415',
    async (type) => {
      const answer = await api.call('PUT /api/v1/topics/orders', '{}', {
        headers: { 'content-type': type },
      });
      expect(answer).toMatchObject({ status: 415, json: { code: 'unsupported_media_type' } });
    },
  );
});

/** Writes bytes to the replica as they are, and reads until it closes. */
function raw(...parts: string[]): Promise<string> {
  const { hostname, port } = new URL(api.address);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => {
      for (const part of parts) socket.write(part);
    });
    let text = '';
    socket.on('data', (chunk) => (text += chunk.toString()));
    socket.on('close', () => resolve(text));
    socket.on('error', reject);
  });
}

describe('bad HTTP', () => {
  test('regression: a compressed body is called bad JSON instead of an encoding that is not supported', async () => {
    const body = gzipSync('{"type": "a"}');
    const headers = { 'content-encoding': 'gzip' };
    expect(await api.call('POST /api/v1/topics/orders/events', body, { headers })).toMatchObject({
      status: 415,
      headers: { 'accept-encoding': 'identity' },
      json: { code: 'unsupported_media_type' },
    });
    const identity = { headers: { 'content-encoding': 'identity' } };
    const plain = await api.call('POST /api/v1/topics/orders/events', { type: 'a' }, identity);
    expect(plain.status).toBe(202);
  });

  test('regression: OPTIONS without the headers of a preflight is answered with a text of no known kind', async () => {
    await using open = await startApp(api.url, { env: { ALLOWED_ORIGINS: 'https://a.example' } });
    const answer = await open.call('OPTIONS /api/v1/topics/orders', undefined, { key: null });
    expect(answer).toMatchObject({ status: 204, text: '' });
  });

  test('a body that does not come in time is 408', async () => {
    const answer = await raw(
      'PUT /api/v1/topics/slow HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n',
      `authorization: Bearer ${api.adminKey}\r\ncontent-length: 100\r\n\r\n{"max`,
    );
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(answer).toMatch(/content-type: application\/problem\+json/);
    expect(answer).toMatch(/"code":"request_timeout"/);
  });

  test('what is no HTTP is 400, headers that are too large are 431', async () => {
    expect(await raw('HELLO\r\n\r\n')).toMatch(/^HTTP\/1\.1 400 [^]*"code":"bad_request"/);
    expect(await raw(`GET / HTTP/1.1\r\nhost: a\r\nx: ${'x'.repeat(20_000)}\r\n\r\n`)).toMatch(
      /^HTTP\/1\.1 431 [^]*"code":"headers_too_large"/,
    );
  });

  test('a path that cannot be decoded is 400', async () => {
    const answer = await api.call('GET /api/v1/topics/%zz');
    expect(answer).toMatchObject({ status: 400, json: { code: 'bad_request' } });
  });
});

describe('every answer', () => {
  test('has its own id, or the one that the caller gave if it is harmless', async () => {
    const id = async (given?: string): Promise<string | undefined> => {
      const headers = given === undefined ? {} : { 'x-request-id': given };
      const answer = await api.call('GET /api/v1/topics/nowhere', undefined, { headers });
      expect(answer.json.request_id).toBe(answer.headers['x-request-id']);
      return answer.headers['x-request-id'];
    };
    expect(await id('my-id.1')).toBe('my-id.1');
    const own = await id();
    expect(own).toMatch(/^[0-9a-f-]{36}$/);
    expect(await id()).not.toBe(own);
    expect(await id('<script>')).toMatch(/^[0-9a-f-]{36}$/);
    expect(await id('x'.repeat(200))).toMatch(/^[0-9a-f-]{36}$/);
  });

  test('has security headers and is not cached', async () => {
    for (const route of ['GET /api/v1/topics', 'GET /nowhere', 'GET /api/health']) {
      const { headers } = await api.call(route);
      expect(headers).toMatchObject({
        'cache-control': 'no-store',
        'x-content-type-options': 'nosniff',
        'content-security-policy': "default-src 'none';frame-ancestors 'none'",
      });
      expect(headers['x-powered-by']).toBeUndefined();
    }
  });

  test('that refuses is a problem with type, instance and code', async () => {
    const answer = await api.call('GET /api/v1/topics/nowhere?limit=1');
    expect(answer.json).toEqual({
      type: 'urn:problem-type:event-broker:topic_not_found',
      title: 'There is no such topic',
      status: 404,
      detail: 'There is no topic nowhere.',
      instance: '/api/v1/topics/nowhere',
      code: 'topic_not_found',
      request_id: answer.headers['x-request-id'],
    });
  });
});

test('an unknown path is 404; a method that the path does not know is 405 and says which it does', async () => {
  expect(await api.call('GET /api/v1/nowhere', undefined, { key: null })).toMatchObject({
    status: 404,
    json: { code: 'not_found' },
  });
  for (const [route, allow] of [
    ['POST /api/v1/topics/orders', 'DELETE, GET, HEAD, PUT'],
    ['DELETE /api/v1/topics', 'GET, HEAD'],
    ['GET /api/v1/subscriptions/billing/ack', 'POST'],
    ['POST /api/v1/subscriptions/billing', 'DELETE, GET, HEAD, PATCH, PUT'],
  ] as const) {
    const answer = await api.call(route);
    expect(answer).toMatchObject({ status: 405, json: { code: 'method_not_allowed' } });
    expect(answer.headers['allow']).toBe(allow);
  }
});

describe('CORS', () => {
  test('is off unless origins are named', async () => {
    const headers = { origin: 'https://app.example' };
    const answer = await api.call('GET /api/v1/topics', undefined, { headers });
    expect(answer.headers['access-control-allow-origin']).toBeUndefined();
  });

  test('answers the named origins only', async () => {
    await using open = await startApp(api.url, {
      env: { ALLOWED_ORIGINS: 'https://app.example,https://other.example' },
    });
    const preflight = (origin: string) =>
      open.call('OPTIONS /api/v1/topics', undefined, {
        key: null,
        headers: {
          origin,
          'access-control-request-method': 'GET',
          'access-control-request-headers': 'authorization',
        },
      });
    const allowed = await preflight('https://app.example');
    expect(allowed.status).toBe(204);
    expect(allowed.headers['access-control-allow-origin']).toBe('https://app.example');
    expect(allowed.headers['access-control-allow-credentials']).toBeUndefined();
    expect(allowed.headers['access-control-allow-methods']).toBe(
      'GET, HEAD, PUT, PATCH, POST, DELETE',
    );
    const foreign = await preflight('https://evil.example');
    expect(foreign.headers['access-control-allow-origin']).toBeUndefined();
  });
});

test('until the database is ready, only health is answered', async () => {
  let isStarted = false;
  await using starting = await startApp(api.url, {
    app: {
      isStarted: () => isStarted,
      checks: [
        {
          name: 'schema',
          check: () => {
            if (!isStarted) throw new Error('not yet');
          },
        },
      ],
    },
  });
  const refused = await starting.call('GET /api/v1/topics');
  expect(refused).toMatchObject({ status: 503, json: { code: 'starting' } });
  expect(refused.headers['retry-after']).toBe('2');
  expect(await starting.call('GET /api/health/live')).toMatchObject({ status: 204 });
  expect(await starting.call('GET /api/health')).toMatchObject({
    status: 503,
    json: { status: 'not_ready', checks: [{ name: 'schema', status: 'failed' }] },
  });
  isStarted = true;
  expect(await starting.call('GET /api/health')).toMatchObject({ status: 200 });
  expect(await starting.call('GET /api/v1/topics')).toMatchObject({ status: 200 });
});

test('a draining replica is not ready, finishes what comes, and asks to connect no more', async () => {
  await using draining = await startApp(api.url, { deps: { isDraining: () => true } });
  expect(await draining.call('GET /api/health')).toMatchObject({
    status: 503,
    json: { status: 'draining' },
  });
  const answer = await draining.call('GET /api/v1/topics');
  expect(answer.status).toBe(200);
  expect(answer.headers['connection']).toBe('close');
});

test('metrics count requests by the pattern of their route', async () => {
  await api.call('GET /api/v1/topics/orders');
  await api.call('GET /some/made/up/path');
  const { text } = await api.call('GET /api/metrics', undefined, { key: null });
  expect(text).toMatch(
    /broker_http_requests_total\{method="GET",route="\/api\/v1\/topics\/:topic",status="200"/,
  );
  expect(text).toMatch(/route="unmatched",status="404"/);
  expect(text).not.toContain('/made/up');
});
