import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';
import { query } from '../support/database.ts';
import { aTopicWithReader, problemOf } from '../support/topic-with-reader.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
  await api.call('PUT /api/v1/topics/orders', {});
  await api.call('PUT /api/v1/topics/other', {});
});
afterAll(() => api[Symbol.asyncDispose]());

const endpoint = 'https://hooks.invalid/orders';

describe('PATCH /subscriptions/{subscription}', () => {
  const patch = (name: string, body: unknown) =>
    api.call(`PATCH /api/v1/subscriptions/${name}`, body);

  test('changes what is given and keeps the rest', async () => {
    const put = await api.call('PUT /api/v1/subscriptions/one', {
      topic: 'orders',
      type: 'push',
      filter: { exact: { type: 'a' } },
      retry_policy: { max_attempts: 3, minimum_backoff_ms: 10 },
      push: { endpoint, mode: 'raw', headers: { a: '1', b: '2' }, timeout_ms: 500 },
    });
    expect(put.status, put.text).toBe(201);
    const { updated_at: _, ...before } = (await api.call('GET /api/v1/subscriptions/one')).json;
    const steps: [object, object][] = [
      [{}, {}],
      [{ topic: 'orders', type: 'push' }, {}],
      [{ backpressure: true }, { backpressure: true }],
      [{ on_expiry: 'dead_letter' }, { on_expiry: 'dead_letter' }],
      [{ visibility_timeout_seconds: 7 }, { visibility_timeout_seconds: 7 }],
      [{ filter: { exact: { source: '/s' } } }, { filter: { exact: { source: '/s' } } }],
      [{ filter: null }, { filter: null }],
      [
        { retry_policy: { retry_client_errors: true, maximum_backoff_ms: 20 } },
        {
          retry_policy: {
            ...before.retry_policy,
            retry_client_errors: true,
            maximum_backoff_ms: 20,
          },
        },
      ],
      [{ push: { timeout_ms: 900 } }, { push: { ...before.push, timeout_ms: 900 } }],
      [
        { push: { endpoint: 'https://new.invalid/', headers: { c: '3' } } },
        {
          push: {
            mode: 'raw',
            timeout_ms: 900,
            endpoint: 'https://new.invalid/',
            headers: { c: '3' },
          },
        },
      ],
    ];
    let expected = before;
    for (const [body, changed] of steps) {
      expected = { ...expected, ...changed };
      const answer = await patch('one', body);
      expect(answer.status, answer.text).toBe(200);
      const { updated_at: __, ...shown } = answer.json;
      expect(shown).toEqual(expected);
      expect((await api.call('GET /api/v1/subscriptions/one')).json).toEqual(answer.json);
    }
  });

  test('many at once: none is lost', async () => {
    await api.call('PUT /api/v1/subscriptions/busy', { topic: 'orders', type: 'pull' });
    const bodies = [
      { visibility_timeout_seconds: 77 },
      { backpressure: false },
      { on_expiry: 'dead_letter' },
      { retry_policy: { max_attempts: 7 } },
      { retry_policy: { multiplier: 7 } },
      { retry_policy: { minimum_backoff_ms: 7 } },
      { filter: { exact: { type: 'seven' } } },
    ];
    await Promise.all(bodies.map((body) => patch('busy', body)));
    expect((await api.call('GET /api/v1/subscriptions/busy')).json).toMatchObject({
      visibility_timeout_seconds: 77,
      backpressure: false,
      on_expiry: 'dead_letter',
      retry_policy: { max_attempts: 7, multiplier: 7, minimum_backoff_ms: 7 },
      filter: { exact: { type: 'seven' } },
    });
  });

  test.each([
    [{ topic: 'other' }, 409, 'subscription_immutable'],
    [{ type: 'push' }, 409, 'subscription_immutable'],
    [{ push: { endpoint } }, 422, '/push'],
    [{ push: null }, 422, '/push'],
    [{ state: 'paused' }, 422, '/state'],
    [{ name: 'new' }, 422, '/name'],
    [{ max_attempts: 5 }, 422, '/max_attempts'],
    [{ ordered: true }, 422, '/ordered'],
    [{ filter: { prefix: {} } }, 422, '/filter/prefix'],
    [{ visibility_timeout_seconds: null }, 422, '/visibility_timeout_seconds'],
    [{ retry_policy: { minimum_backoff_ms: 60_001 } }, 422, '/retry_policy/minimum_backoff_ms'],
    [{ retry_policy: { maximum_backoff_ms: 999 } }, 422, '/retry_policy/maximum_backoff_ms'],
    [[], 422, ''],
  ])('refuses %j and changes nothing', async (body, status, where) => {
    await api.call('PUT /api/v1/subscriptions/kept', { topic: 'orders', type: 'pull' });
    const before = await api.call('GET /api/v1/subscriptions/kept');
    const answer = await patch('kept', body);
    expect(answer.status, answer.text).toBe(status);
    expect(answer.json.errors?.[0].pointer ?? answer.json.code).toBe(where);
    expect((await api.call('GET /api/v1/subscriptions/kept')).json).toEqual(before.json);
  });

  test('refuses headers of push as a PUT does', async () => {
    const body = { topic: 'orders', type: 'push', push: { endpoint } };
    await api.call('PUT /api/v1/subscriptions/headed', body);
    const answer = await patch('headed', { push: { headers: { 'webhook-id': 'x' } } });
    expect(answer).toMatchObject({
      status: 422,
      json: { errors: [{ pointer: '/push/headers/webhook-id' }] },
    });
  });

  test('of none is 404', async () => {
    expect(problemOf(await patch('nowhere', {}))).toEqual([404, 'subscription_not_found']);
  });
});

describe('pause and resume', () => {
  test('a paused subscription hands out nothing; what is leased may still be settled; a resume hands out to who waits', async () => {
    const { reader, publishMany, post, receive } = await aTopicWithReader(api);
    await publishMany(1);
    const [leased] = await receive();
    const paused = await post('pause');
    expect(paused).toMatchObject({ status: 200, json: { name: reader, state: 'paused' } });
    await publishMany(1);
    expect(await receive()).toEqual([]);
    expect(await post('ack', { lease_ids: [leased?.lease_id] })).toMatchObject({ status: 200 });
    const waiting = receive({ wait_seconds: 20 });
    // it has looked, and has nothing
    await expect
      .poll(async () => (await api.call('GET /api/metrics')).text)
      .toMatch(/broker_receive_waiting\{[^}]*\} 1/);
    expect(await post('resume', {})).toMatchObject({ status: 200, json: { state: 'active' } });
    expect(await waiting).toHaveLength(1);
  });

  test('each may be repeated', async () => {
    const { post } = await aTopicWithReader(api);
    for (const [verb, state] of [
      ['resume', 'active'],
      ['pause', 'paused'],
      ['pause', 'paused'],
      ['resume', 'active'],
    ] as const) {
      expect(await post(verb)).toMatchObject({ status: 200, json: { state } });
    }
  });

  test('resume undoes a disabling; pause does not', async () => {
    const body = { topic: 'orders', type: 'push', push: { endpoint } };
    await api.call('PUT /api/v1/subscriptions/gone', body);
    await query(
      api.url,
      `update broker.subscription set state = 'disabled', disabled_reason = 'the endpoint said 410' where name = 'gone'`,
    );
    expect((await api.call('GET /api/v1/subscriptions/gone')).json).toMatchObject({
      state: 'disabled',
      disabled_reason: 'the endpoint said 410',
    });
    expect((await api.call('POST /api/v1/subscriptions/gone/pause')).json.state).toBe('disabled');
    // a change is none of its state
    const moved = await api.call('PATCH /api/v1/subscriptions/gone', {
      push: { endpoint: 'https://moved.invalid/' },
    });
    expect(moved.json.state).toBe('disabled');
    expect((await api.call('POST /api/v1/subscriptions/gone/resume')).json).toMatchObject({
      state: 'active',
      disabled_reason: null,
      push: { endpoint: 'https://moved.invalid/' },
    });
  });

  test.each(['pause', 'resume'])(
    '%s takes nothing to choose by, and of none is 404',
    async (verb) => {
      const { post } = await aTopicWithReader(api);
      expect(await post(verb, { until: 5 })).toMatchObject({
        status: 422,
        json: { errors: [{ pointer: '/until' }] },
      });
      expect(problemOf(await api.call(`POST /api/v1/subscriptions/nowhere/${verb}`))).toEqual([
        404,
        'subscription_not_found',
      ]);
    },
  );
});
