import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { pushSecretContext } from '#db/push-secrets.ts';
import { findPushSubscription } from '#db/push-subscriptions.ts';
import { createSealer } from '#runtime/sealer.ts';
import { type OwnTestApp, startApp, startOwnApp } from '../support/app.ts';
import { query } from '../support/database.ts';
import { problemOf } from '../support/topic-with-reader.ts';

const key = Buffer.alloc(32, 5).toString('base64');
// a name that no resolver answers for: RFC 6761
const endpoint = 'https://hooks.invalid/orders';
const push = { topic: 'orders', type: 'push', push: { endpoint } };

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp({ env: { SECRET_ENCRYPTION_KEY: key } });
  await api.call('PUT /api/v1/topics/orders', {});
});
afterAll(() => api[Symbol.asyncDispose]());

const put = (name: string, members: object = {}) =>
  api.call(`PUT /api/v1/subscriptions/${name}`, { ...push, push: { endpoint, ...members } });

describe('PUT /subscriptions/{subscription} of type push', () => {
  test('fills in the defaults, and shows the secret once', async () => {
    const made = await api.call('PUT /api/v1/subscriptions/mailer', push);
    expect(made).toMatchObject({
      status: 201,
      json: {
        type: 'push',
        state: 'active',
        disabled_reason: null,
        backpressure: false,
        retry_policy: { retry_client_errors: false },
      },
    });
    const { secret, ...shown } = made.json.push;
    expect(shown).toEqual({
      endpoint,
      mode: 'cloudevents_binary',
      headers: {},
      timeout_ms: 15_000,
    });
    expect(secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    const bytes = Buffer.from(secret.slice('whsec_'.length), 'base64');

    // kept sealed for this subscription, so that a worker opens it and nobody reads it
    const [stored] = await query<{
      id: number;
      key_id: string;
      sealed: Buffer;
      everything: string;
    }>(
      api.url,
      `select s.id, p.key_id, p.sealed, s::text as everything from broker.push_secret p
        join broker.subscription s on s.id = p.subscription_id where s.name = 'mailer'`,
    );
    expect(stored?.sealed.includes(bytes)).toBe(false);
    expect(stored?.everything).not.toContain(secret.slice(6));
    const row = await findPushSubscription(api.db, stored?.id ?? 0);
    const opened = createSealer(key).open(
      row?.sealed ?? Buffer.alloc(0),
      row?.key_id ?? null,
      pushSecretContext(row?.id ?? 0),
    );
    expect(opened).toEqual(bytes);

    // an existing one keeps it, and no other answer has it
    const answers = [
      await api.call('PUT /api/v1/subscriptions/mailer', push),
      await api.call('GET /api/v1/subscriptions/mailer'),
      await api.call('PATCH /api/v1/subscriptions/mailer', { push: { timeout_ms: 100 } }),
      await api.call('POST /api/v1/subscriptions/mailer/pause'),
      await api.call('POST /api/v1/subscriptions/mailer/resume', {}),
      await api.call('GET /api/v1/subscriptions'),
      await api.call('GET /api/status'),
    ];
    for (const answer of answers) {
      expect(answer.status).toBe(200);
      expect(answer.text).not.toContain(secret.slice(6));
      expect(answer.text).not.toMatch(/whsec_|"secret"|sealed/);
    }
    expect((await findPushSubscription(api.db, stored?.id ?? 0))?.sealed).toEqual(stored?.sealed);
  });

  test('two have different secrets; one that was deleted gets a new one', async () => {
    const secrets = new Set<string>();
    for (const name of ['first', 'second', 'first']) {
      await api.call(`DELETE /api/v1/subscriptions/${name}`);
      secrets.add((await put(name)).json.push.secret as string);
    }
    expect(secrets.size).toBe(3);
  });

  test('takes every setting, and goes back to the defaults of what is not given', async () => {
    const settings = {
      endpoint: 'http://hooks.invalid:8080/a?b=c',
      mode: 'raw',
      headers: { 'X-Shop': 'a\tb "c"', authorization: 'Bearer x' },
      timeout_ms: 60_000,
    };
    const made = await put('full', settings);
    expect(made.status, made.text).toBe(201);
    expect(made.json.push).toMatchObject(settings);
    const read = await api.call('GET /api/v1/subscriptions/full');
    expect(read.json.push).toEqual(settings);
    expect((await put('full')).json.push).toEqual({
      endpoint,
      mode: 'cloudevents_binary',
      headers: {},
      timeout_ms: 15_000,
    });
  });

  test.each([
    [{ type: 'push' }, '/push'],
    [{ type: 'push', push: null }, '/push'],
    [{ type: 'pull', push: { endpoint } }, '/push'],
    [{ type: 'push', push: {} }, '/push/endpoint'],
    [{ type: 'push', push: { endpoint, url: 'x' } }, '/push/url'],
    [{ type: 'push', push: { endpoint, secret: 'whsec_x' } }, '/push/secret'],
    [{ type: 'push', push: { endpoint, mode: 'cloudevents' } }, '/push/mode'],
    [{ type: 'push', push: { endpoint, timeout_ms: 99 } }, '/push/timeout_ms'],
    [{ type: 'push', push: { endpoint, timeout_ms: 60_001 } }, '/push/timeout_ms'],
    [{ type: 'push', push: { endpoint, headers: { 'a b': '1' } } }, '/push/headers/a b'],
    [{ type: 'push', push: { endpoint, headers: { 'a:': '1' } } }, '/push/headers/a:'],
    [{ type: 'push', push: { endpoint, headers: { '': '1' } } }, '/push/headers/'],
    [{ type: 'push', push: { endpoint, headers: { a: 'b\r\nc: d' } } }, '/push/headers/a'],
    [{ type: 'push', push: { endpoint, headers: { a: 'ä' } } }, '/push/headers/a'],
    [{ type: 'push', push: { endpoint, headers: { a: 5 } } }, '/push/headers/a'],
    [{ type: 'push', push: { endpoint, headers: { a: '1', A: '2' } } }, '/push/headers/A'],
    [{ type: 'push', push: { endpoint }, ordered: true }, '/ordered'],
  ])('refuses %j', async (members, pointer) => {
    const answer = await api.call('PUT /api/v1/subscriptions/bad', { topic: 'orders', ...members });
    expect(answer.status, answer.text).toBe(422);
    expect(answer.json.errors[0].pointer).toBe(pointer);
    expect(answer.json.detail.length).toBeLessThan(300);
  });

  test.each([
    'Host',
    'content-length',
    'Content-Type',
    'webhook-id',
    'Webhook-Signature',
    'ce-id',
    'traceparent',
    'Proxy-Authorization',
  ])('refuses the reserved header %s', async (name) => {
    const answer = await put('bad', { headers: { [name]: 'x' } });
    expect(answer).toMatchObject({
      status: 422,
      json: { code: 'invalid_request', errors: [{ pointer: `/push/headers/${name}` }] },
    });
  });

  test('32 headers of 8 KiB in all are taken, and no more', async () => {
    const headers = (count: number, bytes: number): Record<string, string> =>
      Object.fromEntries(
        Array.from({ length: count }, (_, n) => [
          `h${String(n).padStart(2, '0')}`,
          'x'.repeat(bytes),
        ]),
      );
    expect((await put('many', { headers: headers(32, 253) })).status).toBe(201);
    for (const tooMany of [headers(33, 1), headers(32, 254)]) {
      expect(await put('many', { headers: tooMany })).toMatchObject({
        status: 422,
        json: { code: 'invalid_request', errors: [{ pointer: '/push/headers' }] },
      });
    }
  });

  test('does not become a pull subscription, nor the other way', async () => {
    await put('fixed');
    await api.call('PUT /api/v1/subscriptions/fixed-pull', { topic: 'orders', type: 'pull' });
    const toPull = { topic: 'orders', type: 'pull' };
    expect(problemOf(await api.call('PUT /api/v1/subscriptions/fixed', toPull))).toEqual([
      409,
      'subscription_immutable',
    ]);
    expect(problemOf(await put('fixed-pull'))).toEqual([409, 'subscription_immutable']);
  });
});

describe('the endpoint', () => {
  test.each([
    'ftp://hooks.invalid/',
    'https://user:pass@hooks.invalid/',
    'http://hooks.invalid:22/',
    'http://127.0.0.1:9000/hook',
    'http://[::1]:9000/hook',
    'http://[::ffff:127.0.0.1]:9000/hook',
    'http://169.254.169.254/latest/meta-data/',
    'http://10.0.0.1/',
    // by the system's resolver
    'http://localhost:9000/hook',
    'not a url',
  ])('%s is not allowed', async (hostile) => {
    const answer = await put('hostile', { endpoint: hostile });
    expect(answer).toMatchObject({
      status: 422,
      json: { code: 'endpoint_not_allowed', errors: [{ pointer: '/push/endpoint' }] },
    });
    expect((await api.call('GET /api/v1/subscriptions/hostile')).status).toBe(404);
    await put('patched');
    expect(
      problemOf(
        await api.call('PATCH /api/v1/subscriptions/patched', { push: { endpoint: hostile } }),
      ),
    ).toEqual([422, 'endpoint_not_allowed']);
  });

  test.each(['http://127.0.0.1:9000/hook', 'http://localhost:9000/hook'])(
    '%s is told what opens it, and is allowed where that does',
    async (local) => {
      const refused = await put('local', { endpoint: local });
      expect(refused.json.detail).toContain('ALLOW_PRIVATE_TARGETS');
      await using open = await startApp(api.url, {
        env: { ALLOW_PRIVATE_TARGETS: '127.0.0.0/8,::1', SECRET_ENCRYPTION_KEY: key },
      });
      const body = { ...push, push: { endpoint: local } };
      const allowed = await open.call('PUT /api/v1/subscriptions/local', body);
      expect(allowed.status, allowed.text).toBe(201);
      await open.call('DELETE /api/v1/subscriptions/local');
    },
  );
});

describe('a push subscription', () => {
  test.each([
    ['receive', {}],
    ['ack', { lease_ids: ['x'] }],
    ['nack', { leases: [{ lease_id: 'x' }] }],
    ['extend', { lease_ids: ['x'], visibility_timeout_seconds: 5 }],
  ])('is not for %s', async (verb, body) => {
    await put('pushed');
    const answer = await api.call(`POST /api/v1/subscriptions/pushed/${verb}`, body);
    expect(problemOf(answer)).toEqual([409, 'subscription_is_push']);
    expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
  });

  test('gets what is published, and does not stop its producers', async () => {
    await api.call('PUT /api/v1/topics/flooded', { max_backlog: 1 });
    const body = { ...push, topic: 'flooded' };
    expect((await api.call('PUT /api/v1/subscriptions/dead-hook', body)).status).toBe(201);
    const published = await api.call('POST /api/v1/topics/flooded/events', { type: 'a' });
    const { id } = published.json;
    const { json } = await api.call(`GET /api/v1/topics/flooded/events/${id}/deliveries`);
    expect(json.items).toMatchObject([
      { subscription: 'dead-hook', state: 'waiting', history: [] },
    ]);
  });
});

test('without a key the secret itself is kept', async () => {
  await using plain = await startApp(api.url);
  const made = await plain.call('PUT /api/v1/subscriptions/plain', push);
  const bytes = Buffer.from((made.json.push.secret as string).slice(6), 'base64');
  const stored = await query(
    api.url,
    `select key_id, sealed from broker.push_secret p join broker.subscription s on s.id = p.subscription_id
      where s.name = 'plain'`,
  );
  expect(stored).toEqual([{ key_id: null, sealed: bytes }]);
});
