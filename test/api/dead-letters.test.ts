import { afterAll, beforeAll, expect, test } from 'vitest';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';
import { query } from '../support/database.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
  await api.call('PUT /api/v1/topics/orders', {});
});
afterAll(() => api[Symbol.asyncDispose]());

/** Publishes events to a new subscription and rejects them all; the ids of the events, in order. */
async function kill(subscription: string, events: unknown[] | string): Promise<string[]> {
  await api.call(`PUT /api/v1/subscriptions/${subscription}`, {
    topic: 'orders',
    type: 'pull',
    filter: { exact: { type: subscription } },
  });
  const body = typeof events === 'string' ? events : JSON.stringify(events);
  const published = await api.call('POST /api/v1/topics/orders/events', body);
  expect(published.status).toBe(202);
  const received = await api.call(`POST /api/v1/subscriptions/${subscription}/receive`, {
    max_messages: 1000,
  });
  const leases = received.json.messages.map(({ lease_id }: { lease_id: string }) => ({
    lease_id,
    dead_letter: true,
    reason: 'no good',
  }));
  const nacked = await api.call(`POST /api/v1/subscriptions/${subscription}/nack`, { leases });
  expect(nacked.json.failed).toEqual([]);
  return published.json.results.map(({ id }: { id: string }) => id);
}

test('a dead letter shows the event as it was published, and why it died', async () => {
  const data = '{"b": 1.0,  "a": 12345678901234567890, "a": [ ]}';
  const [id] = await kill(
    'shown',
    `[{"type":"shown","id":"o-1","source":"/shop","subject":"s","ordering_key":"k","extensions":{"x":1},"data":${data}}]`,
  );
  const page = await api.call('GET /api/v1/subscriptions/shown/dlq');
  expect(page.status).toBe(200);
  expect(page.json).toMatchObject({
    items: [
      {
        event_id: id,
        reason: 'rejected',
        last_error: 'no good',
        last_status: null,
        attempts: 1,
        event: { specversion: '1.0', id: 'o-1', source: '/shop', type: 'shown', partitionkey: 'k' },
      },
    ],
    next_cursor: null,
  });
  expect(page.text).toContain(data);
  const [item] = page.json.items;
  expect(item.died_at).toMatch(/^\d{4}-\d\d-\d\dT.*Z$/);
  await query(api.url, 'update broker.dead_letter set last_status = 422 where id = $1', [item.id]);
  item.last_status = 422;
  const one = await api.call(`GET /api/v1/subscriptions/shown/dlq/${item.id}`);
  expect(one).toMatchObject({ status: 200, json: item });
  expect(one.text).toContain(data);
});

test('the list pages from the oldest on', async () => {
  const ids = await kill(
    'paged',
    Array.from({ length: 7 }, (_, n) => ({ type: 'paged', data: n })),
  );
  const seen: string[] = [];
  let cursor: string | null = null;
  do {
    const search = cursor === null ? 'limit=3' : `limit=3&cursor=${cursor}`;
    const page = await api.call(`GET /api/v1/subscriptions/paged/dlq?${search}`);
    seen.push(...page.json.items.map((item: { event_id: string }) => item.event_id));
    cursor = page.json.next_cursor;
  } while (cursor !== null);
  expect(seen).toEqual(ids);
  for (const bad of ['AAAA', 'ZDox%0A', Buffer.from('d:-1').toString('base64url')]) {
    expect(await api.call(`GET /api/v1/subscriptions/paged/dlq?cursor=${bad}`)).toMatchObject({
      status: 422,
      json: { code: 'invalid_cursor' },
    });
  }
});

test('a page of large events is cut by bytes, and the next one goes on', async () => {
  const data = 'x'.repeat(250_000);
  for (let n = 0; n < 2; n += 1) {
    await kill(
      'large',
      Array.from({ length: 20 }, () => ({ type: 'large', data })),
    );
  }
  const first = await api.call('GET /api/v1/subscriptions/large/dlq?limit=250');
  expect(first.text.length).toBeLessThan(9_000_000);
  expect(first.json.next_cursor).not.toBeNull();
  const second = await api.call(
    `GET /api/v1/subscriptions/large/dlq?limit=250&cursor=${first.json.next_cursor}`,
  );
  expect(first.json.items.length + second.json.items.length).toBe(40);
  expect(second.json.next_cursor).toBeNull();
});

test('one is deleted, or all of them', async () => {
  await kill('purged', [{ type: 'purged' }, { type: 'purged' }, { type: 'purged' }]);
  await kill('kept', [{ type: 'kept' }]);
  const { json } = await api.call('GET /api/v1/subscriptions/purged/dlq');
  const route = `/api/v1/subscriptions/purged/dlq/${json.items[1].id}`;
  expect(await api.call(`DELETE ${route}`)).toMatchObject({ status: 204 });
  for (const method of ['DELETE', 'GET']) {
    expect(await api.call(`${method} ${route}`)).toMatchObject({
      status: 404,
      json: { code: 'dead_letter_not_found' },
    });
  }
  // another subscription's dead letters are none of this one's
  expect(await api.call(`GET /api/v1/subscriptions/kept/dlq/${json.items[0].id}`)).toMatchObject({
    status: 404,
  });
  expect(await api.call('DELETE /api/v1/subscriptions/purged/dlq')).toMatchObject({
    status: 200,
    json: { purged: 2 },
  });
  expect((await api.call('GET /api/v1/subscriptions/purged/dlq')).json.items).toEqual([]);
  expect((await api.call('GET /api/v1/subscriptions/kept/dlq')).json.items).toHaveLength(1);
});

test('redrive makes a job; a second one waits until the first has ended', async () => {
  await kill('redriven', [{ type: 'redriven' }, { type: 'redriven' }]);
  const route = 'POST /api/v1/subscriptions/redriven/dlq/redrive';
  const answers = await Promise.all([api.call(route, {}), api.call(route)]);
  expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([202, 409]);
  const made = answers.find(({ status }) => status === 202);
  expect(answers.find(({ status }) => status === 409)?.json.code).toBe('job_unfinished');
  const jobId = made?.json.job_id as string;
  expect(jobId).toMatch(/^\d+$/);
  expect(made?.headers['location']).toBe(`/api/v1/jobs/${jobId}`);
  expect(await api.call(`GET /api/v1/jobs/${jobId}`)).toMatchObject({
    status: 200,
    json: {
      id: jobId,
      type: 'redrive',
      state: 'waiting',
      topic: 'orders',
      subscription: 'redriven',
      total: 2,
      done: 0,
      finished_at: null,
    },
  });
  const { json } = await api.call('GET /api/v1/subscriptions/redriven/dlq');
  const [row] = await query(api.url, 'select last_dead_letter_id from broker.job where id = $1', [
    jobId,
  ]);
  expect(row?.['last_dead_letter_id']).toBe(json.items.at(-1).id);
  await query(api.url, `update broker.job set state = 'succeeded' where id = $1`, [jobId]);
  expect(await api.call(route, {})).toMatchObject({ status: 202 });
});

test('redrive takes a rate, which its job shows with how far it is', async () => {
  await kill('rated', [{ type: 'rated' }, { type: 'rated' }]);
  const route = 'POST /api/v1/subscriptions/rated/dlq/redrive';
  for (const [body, pointer] of [
    [{ rate: 5 }, '/rate'],
    [{ rate_per_second: 0 }, '/rate_per_second'],
    [{ rate_per_second: 100_001 }, '/rate_per_second'],
    [{ rate_per_second: 0.5 }, '/rate_per_second'],
    [{ rate_per_second: '5' }, '/rate_per_second'],
  ] as const) {
    expect(await api.call(route, body)).toMatchObject({
      status: 422,
      json: { code: 'invalid_request', errors: [{ pointer }] },
    });
  }
  const made = await api.call(route, { rate_per_second: 5 });
  expect(made.status, made.text).toBe(202);
  const job = async () => (await api.call(`GET /api/v1/jobs/${made.json.job_id}`)).json;
  expect(await job()).toMatchObject({ rate_per_second: 5, total: 2, done: 0, progress: 0 });
  await query(api.url, `update broker.job set done = 1, state = 'running' where id = $1`, [
    made.json.job_id,
  ]);
  expect(await job()).toMatchObject({ done: 1, progress: 0.5 });
  // the other one was purged meanwhile
  await query(api.url, `update broker.job set state = 'succeeded' where id = $1`, [
    made.json.job_id,
  ]);
  expect(await job()).toMatchObject({ done: 1, progress: 1 });
});
