import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';
import { query } from '../support/database.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
  await api.call('PUT /api/v1/topics/orders', {});
  await api.call('PUT /api/v1/topics/other', {});
});
afterAll(() => api[Symbol.asyncDispose]());

const pull = { topic: 'orders', type: 'pull' };
const defaults = {
  ...pull,
  state: 'active',
  filter: null,
  visibility_timeout_seconds: 30,
  retry_policy: {
    max_attempts: 10,
    minimum_backoff_ms: 1000,
    maximum_backoff_ms: 60_000,
    multiplier: 2,
  },
  backpressure: true,
  on_expiry: 'drop',
  ordered: false,
  max_in_flight: null,
  push: null,
  disabled_reason: null,
};

describe('PUT /subscriptions/{subscription}', () => {
  test('the example of the contract', async () => {
    const body = {
      ...pull,
      visibility_timeout_seconds: 30,
      filter: { exact: { type: 'order.created' } },
      retry_policy: {
        max_attempts: 10,
        minimum_backoff_ms: 1000,
        maximum_backoff_ms: 60_000,
        multiplier: 2,
      },
      ordered: false,
      max_in_flight: null,
    };
    const answer = await api.call('PUT /api/v1/subscriptions/billing', body);
    expect(answer).toMatchObject({ status: 201, json: { ...body, name: 'billing' } });
    expect(await api.call('GET /api/v1/subscriptions/billing')).toMatchObject({
      status: 200,
      json: answer.json,
    });
  });

  test('replaces: what is not given goes back to its default', async () => {
    const first = await api.call('PUT /api/v1/subscriptions/replaced', {
      ...pull,
      filter: { exact: { type: 'a', source: '/s' } },
      visibility_timeout_seconds: 5,
      retry_policy: { max_attempts: 3 },
      backpressure: false,
      on_expiry: 'dead_letter',
    });
    expect(first).toMatchObject({
      status: 201,
      json: {
        filter: { exact: { type: 'a', source: '/s' } },
        backpressure: false,
        on_expiry: 'dead_letter',
        retry_policy: { ...defaults.retry_policy, max_attempts: 3 },
      },
    });
    const second = await api.call('PUT /api/v1/subscriptions/replaced', pull);
    expect(second).toMatchObject({ status: 200, json: defaults });
  });

  test('a bound of the backoff that is given moves the default of the other', async () => {
    const high = await api.call('PUT /api/v1/subscriptions/bounds', {
      ...pull,
      retry_policy: { minimum_backoff_ms: 120_000 },
    });
    expect(high.json.retry_policy).toMatchObject({
      minimum_backoff_ms: 120_000,
      maximum_backoff_ms: 120_000,
    });
    const low = await api.call('PUT /api/v1/subscriptions/bounds', {
      ...pull,
      retry_policy: { maximum_backoff_ms: 10 },
    });
    expect(low.json.retry_policy).toMatchObject({ minimum_backoff_ms: 10, maximum_backoff_ms: 10 });
  });

  test('twice at once: one creates, the other replaces', async () => {
    for (let round = 0; round < 5; round += 1) {
      const answers = await Promise.all(
        [1, 2, 3].map(() => api.call(`PUT /api/v1/subscriptions/race-${round}`, pull)),
      );
      expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([
        200, 200, 201,
      ]);
    }
  });

  test('never changes its topic; both ends are told apart from a topic that is not there', async () => {
    await api.call('PUT /api/v1/subscriptions/fixed', pull);
    expect(
      await api.call('PUT /api/v1/subscriptions/fixed', { ...pull, topic: 'other' }),
    ).toMatchObject({ status: 409, json: { code: 'subscription_immutable' } });
    expect(
      await api.call('PUT /api/v1/subscriptions/fixed', { ...pull, topic: 'nowhere' }),
    ).toMatchObject({ status: 404, json: { code: 'topic_not_found' } });
    expect((await api.call('GET /api/v1/subscriptions/fixed')).json.topic).toBe('orders');
  });

  test.each([
    [{ ordered: true }, '/ordered'],
    [{ max_in_flight: 10 }, '/max_in_flight'],
    [{ filter: { prefix: { type: 'order.' } } }, '/filter/prefix'],
    [{ filter: { exact: { type: 'a' }, sql: 'true' } }, '/filter/sql'],
  ])('says that it is not supported yet: %j', async (members, pointer) => {
    const answer = await api.call('PUT /api/v1/subscriptions/later', { ...pull, ...members });
    expect(answer).toMatchObject({
      status: 422,
      json: { code: 'not_supported', errors: [{ pointer }] },
    });
    expect(answer.json.detail).toMatch(/not supported yet/);
  });

  test.each([
    [{ topic: undefined }, '/topic'],
    [{ type: undefined }, '/type'],
    [{ type: 'pulls' }, '/type'],
    [{ topic: 5 }, '/topic'],
    [{ topic: 'a b' }, '/topic'],
    [{ visibility_timeout_seconds: 0 }, '/visibility_timeout_seconds'],
    [{ visibility_timeout_seconds: 43_201 }, '/visibility_timeout_seconds'],
    [{ retry_policy: { max_attempts: 0 } }, '/retry_policy/max_attempts'],
    [{ retry_policy: { attempts: 1 } }, '/retry_policy/attempts'],
    [{ retry_policy: { multiplier: 0.5 } }, '/retry_policy/multiplier'],
    [
      { retry_policy: { minimum_backoff_ms: 2, maximum_backoff_ms: 1 } },
      '/retry_policy/minimum_backoff_ms',
    ],
    [{ filter: {} }, '/filter/exact'],
    [{ filter: [] }, '/filter'],
    [{ filter: { exact: {} } }, '/filter/exact'],
    [{ filter: { exact: { type: 5 } } }, '/filter/exact/type'],
    [{ filter: { exact: { ordering_key: 'k' } } }, '/filter/exact/ordering_key'],
    [{ filter: { exact: { data: 'k' } } }, '/filter/exact/data'],
    [{ filter: { regex: 'x' } }, '/filter/regex'],
    [{ on_expiry: 'keep' }, '/on_expiry'],
    [{ state: 'paused' }, '/state'],
    [{ max_in_flight: 'many' }, '/max_in_flight'],
    [{ retry_policy: { retry_client_errors: 'yes' } }, '/retry_policy/retry_client_errors'],
  ])('refuses %j', async (members, pointer) => {
    const answer = await api.call('PUT /api/v1/subscriptions/bad', { ...pull, ...members });
    expect(answer).toMatchObject({
      status: 422,
      json: { code: 'invalid_request', errors: [{ pointer }] },
    });
  });

  test.each([
    ['{"topic":"orders","type":"pull","topic":"other"}', 'invalid_request', '/topic'],
    ['{"topic":"orders","type":"pull","\\u0074ype":"pull"}', 'invalid_request', '/type'],
    ['{"topic":"orders","type":"pull","__proto__":{}}', 'invalid_request', '/__proto__'],
    [
      '{"topic":"orders","type":"pull","filter":{"exact":{"type":"a\\u0000"}}}',
      'invalid_request',
      '/filter/exact/type',
    ],
    [
      '{"topic":"orders","type":"pull","filter":{"exact":{"type":"\\ud800"}}}',
      'invalid_request',
      '/filter/exact/type',
    ],
    [
      `{"topic":"orders","filter":${'['.repeat(20)}${']'.repeat(20)}}`,
      'invalid_request',
      `/filter${'/0'.repeat(15)}`,
    ],
    ['{"topic":"orders"', 'invalid_json', ''],
    ["{'topic':'orders'}", 'invalid_json', ''],
    ['{"topic":"orders",}', 'invalid_json', ''],
    ['{"topic":"orders"} {}', 'invalid_json', ''],
    ['\ufeff{}', 'invalid_json', ''],
    ['NaN', 'invalid_json', ''],
  ])('refuses the text %s', async (text, code, pointer) => {
    const answer = await api.call('PUT /api/v1/subscriptions/bad', text);
    expect(answer).toMatchObject({ status: 422, json: { code } });
    expect(answer.json.errors[0].pointer).toBe(pointer);
  });

  test('refuses what is not UTF-8', async () => {
    const body = Buffer.from('{"topic":"\xff"}', 'latin1');
    const answer = await api.call('PUT /api/v1/subscriptions/bad', body);
    expect(answer).toMatchObject({ status: 422, json: { code: 'invalid_json' } });
  });
});

describe('DELETE /subscriptions/{subscription}', () => {
  test('ends it for every verb at once and frees the name', async () => {
    await api.call('PUT /api/v1/subscriptions/brief', pull);
    await api.call('POST /api/v1/topics/orders/events', { type: 'a' });
    const received = await api.call('POST /api/v1/subscriptions/brief/receive', {});
    const leaseId = received.json.messages[0].lease_id as string;
    expect(await api.call('DELETE /api/v1/subscriptions/brief')).toMatchObject({ status: 204 });
    for (const [route, body] of [
      ['GET /api/v1/subscriptions/brief', undefined],
      ['DELETE /api/v1/subscriptions/brief', undefined],
      ['GET /api/v1/subscriptions/brief/dlq', undefined],
      ['POST /api/v1/subscriptions/brief/receive', {}],
      ['POST /api/v1/subscriptions/brief/ack', { lease_ids: [leaseId] }],
    ] as const) {
      expect(await api.call(route, body)).toMatchObject({
        status: 404,
        json: { code: 'subscription_not_found' },
      });
    }
    // a new one of that name holds none of the old one's leases
    expect(await api.call('PUT /api/v1/subscriptions/brief', pull)).toMatchObject({ status: 201 });
    expect(
      await api.call('POST /api/v1/subscriptions/brief/ack', { lease_ids: [leaseId] }),
    ).toMatchObject({ status: 409 });
    const rows = await query(
      api.url,
      `select state, deleted_at from broker.subscription where name = 'brief' order by id`,
    );
    expect(rows).toMatchObject([{ state: 'deleted' }, { state: 'active', deleted_at: null }]);
    expect(rows[0]?.['deleted_at']).not.toBeNull();
  });
});

test('GET /subscriptions pages by name, of all topics or of one', async () => {
  for (const n of [1, 2, 3]) {
    await api.call(`PUT /api/v1/subscriptions/list-${n}`, { topic: 'other', type: 'pull' });
  }
  const first = await api.call('GET /api/v1/subscriptions?topic=other&limit=2');
  expect(first.json.items.map((item: { name: string }) => item.name)).toEqual(['list-1', 'list-2']);
  const second = await api.call(
    `GET /api/v1/subscriptions?topic=other&limit=2&cursor=${first.json.next_cursor}`,
  );
  expect(second.json).toMatchObject({ items: [{ name: 'list-3' }], next_cursor: null });
  const all = await api.call('GET /api/v1/subscriptions?limit=250');
  expect(all.json.items.length).toBeGreaterThan(3);
});

test('deliveries of an event: waiting, leased, acked, dead, expired', async () => {
  await api.call('PUT /api/v1/topics/seen', {});
  for (const name of ['seen-acked', 'seen-dead', 'seen-leased', 'seen-waiting', 'seen-nacked']) {
    await api.call(`PUT /api/v1/subscriptions/${name}`, { topic: 'seen', type: 'pull' });
  }
  await api.call('PUT /api/v1/subscriptions/seen-not', {
    topic: 'seen',
    type: 'pull',
    filter: { exact: { type: 'other' } },
  });
  const published = await api.call('POST /api/v1/topics/seen/events', [
    { type: 'a', data: 1 },
    { type: 'a', data: 2 },
  ]);
  const id = published.json.results[1].id as string;
  const lease = async (name: string): Promise<string> => {
    const answer = await api.call(`POST /api/v1/subscriptions/${name}/receive`, {});
    return answer.json.messages[1].lease_id as string;
  };
  await api.call('POST /api/v1/subscriptions/seen-acked/ack', {
    lease_ids: [await lease('seen-acked')],
  });
  await api.call('POST /api/v1/subscriptions/seen-dead/nack', {
    leases: [{ lease_id: await lease('seen-dead'), dead_letter: true, reason: 'no good' }],
  });
  await api.call('POST /api/v1/subscriptions/seen-nacked/nack', {
    leases: [{ lease_id: await lease('seen-nacked'), delay_seconds: 60, reason: 'later' }],
  });
  await lease('seen-leased');
  const answer = await api.call(`GET /api/v1/topics/seen/events/${id}/deliveries`);
  expect(answer.status).toBe(200);
  expect(answer.json.items).toMatchObject([
    { subscription: 'seen-acked', state: 'acked', attempts: 1, last_error: null },
    {
      subscription: 'seen-dead',
      state: 'dead',
      attempts: 1,
      last_error: 'no good',
      history: [
        {
          attempt: 1,
          outcome: 'dead',
          worker: null,
          status: null,
          duration_ms: null,
          error: 'no good',
          response: null,
        },
      ],
    },
    { subscription: 'seen-leased', state: 'leased', attempts: 1, available_at: null },
    { subscription: 'seen-nacked', state: 'waiting', attempts: 1, last_error: 'later' },
    { subscription: 'seen-waiting', state: 'waiting', attempts: 0, lease_expires_at: null },
  ]);
  expect(answer.json.items[1].history[0].settled_at).toBe(answer.json.items[1].last_attempt_at);
  expect(answer.json.items[1].dead_letter_id).toMatch(/^\d+$/);
  // what a receiver answered is shown as text, whatever it was
  await query(
    api.url,
    `update broker.attempt set response = '\\x6f6820ff' where outcome = 'acked'`,
  );
  const shown = await api.call(`GET /api/v1/topics/seen/events/${id}/deliveries`);
  expect(shown.json.items[0].history).toMatchObject([{ outcome: 'acked', response: 'oh \ufffd' }]);
  // dropped at the end of its retention: nothing says that it was acked
  await query(
    api.url,
    `delete from broker.queue q using broker.subscription s
      where s.id = q.subscription_id and s.name = 'seen-nacked'`,
  );
  const later = await api.call(`GET /api/v1/topics/seen/events/${id}/deliveries`);
  expect(later.json.items[3]).toMatchObject({ subscription: 'seen-nacked', state: 'expired' });
  for (const unknown of ['1', '0', '9223372036854775807', '9223372036854775808', '001']) {
    expect(await api.call(`GET /api/v1/topics/seen/events/${unknown}/deliveries`)).toMatchObject({
      status: 404,
      json: { code: 'event_not_found' },
    });
  }
});
