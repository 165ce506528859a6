/**
 * Goal: what an endpoint answers decides what becomes of the event, as the table says; and operators can act on it.
 *
 * Method: one worker as a process, an endpoint per row of the table that answers so once and 204 afterwards.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { cloneDatabase, type TestDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import type { Behaviour, Reaction } from '#test/support/push-receiver.ts';
import { PushStage } from '#test/support/push-stage.ts';

let database: TestDatabase;
let stage: PushStage;
beforeAll(async () => {
  database = await cloneDatabase();
  stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
});
afterAll(async () => {
  await stage[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

interface History {
  readonly attempt: number;
  readonly outcome: string;
  readonly status: number | null;
  readonly error: string | null;
  readonly response: string | null;
  readonly worker: string | null;
  readonly duration_ms: number | null;
}

interface Delivery {
  readonly subscription: string;
  readonly state: string;
  readonly attempts: number;
  readonly history: readonly History[];
}

async function deliveryOf(topic: string, id: string): Promise<Delivery> {
  const url = `${stage.api}/topics/${topic}/events/${id}/deliveries`;
  const { items } = await stage.http.call<{ items: Delivery[] }>(url);
  return items[0]!;
}

/** The delivery when it has come to an end, or to its next attempt. */
async function ended(topic: string, id: string, state: string): Promise<Delivery> {
  let delivery: Delivery | undefined;
  const look = async (): Promise<void> => {
    delivery = await deliveryOf(topic, id);
    expect(delivery?.state).toBe(state);
  };
  await eventually(look, { timeoutMs: 20_000 });
  return delivery!;
}

const first =
  (reaction: Reaction): Behaviour =>
  ({ number }) =>
    number === 1 ? reaction : { status: 204 };

// name, answer to the first request, outcome of the first attempt, what it comes to
const table: [string, Reaction, string, string][] = [
  ['200', { status: 200, body: 'thanks' }, 'acked', 'acked'],
  ['299', { status: 299 }, 'acked', 'acked'],
  ['301', { status: 301, headers: { location: '/elsewhere' } }, 'nacked', 'acked'],
  ['307', { status: 307, headers: { location: '/elsewhere' } }, 'nacked', 'acked'],
  ...[400, 401, 402, 403, 405, 406, 413, 415, 422, 451].map(
    (status): [string, Reaction, string, string] => [`${status}`, { status }, 'dead', 'dead'],
  ),
  ...[404, 408, 409, 429, 500, 501, 502, 503, 504, 599].map(
    (status): [string, Reaction, string, string] => [`${status}`, { status }, 'nacked', 'acked'],
  ),
  ['429-later', { status: 429, headers: { 'retry-after': '1' } }, 'deferred', 'acked'],
  ['503-later', { status: 503, headers: { 'retry-after': '1' } }, 'deferred', 'acked'],
  ['hangs', 'hang', 'nacked', 'acked'],
  ['drops', 'drop', 'nacked', 'acked'],
  ['drops-late', 'drop_after_reading', 'nacked', 'acked'],
];

test.concurrent.each(table)(
  '%s: the first attempt is as the table says',
  async (name, reaction, outcome, state) => {
    const hook = await stage.hook(`answer-${name}`, {
      behaviour: first(reaction),
      timeoutMs: 1000,
    });
    const [id] = await stage.publish(`answer-${name}`, 1);
    const { history, attempts } = await ended(`answer-${name}`, id!, state);
    const status = typeof reaction === 'object' ? reaction.status : null;
    expect(history[0]).toMatchObject({ attempt: 1, outcome, status });
    expect(history[0]!.worker).toMatch(/^worker-1\.\d+$/);
    expect(history[0]!.duration_ms).toBeGreaterThanOrEqual(0);
    if (outcome !== 'acked') expect(history[0]!.error).toMatch(/\S/);
    if (name === '200') expect(history[0]!.response).toBe('thanks');
    // a deferral costs no attempt, and nothing is sent twice
    expect(attempts).toBe(outcome === 'nacked' ? 2 : 1);
    expect(hook.requests).toHaveLength(state === 'acked' && outcome !== 'acked' ? 2 : 1);
    expect(stage.receiver.strays).toEqual([]);
    expect(hook.badSignatures).toEqual([]);
    expect(hook.verified).toBeGreaterThan(0);
  },
);

describe('410 Gone', () => {
  test('disables the subscription and keeps the event; a new endpoint and resume deliver it', async () => {
    const gone = await stage.hook('gone', { behaviour: { status: 410 } });
    const there = stage.receiver.endpoint('/there');
    const url = `${stage.api}/subscriptions/gone`;
    const [id] = await stage.publish('gone', 1);
    const disabled = async (): Promise<void> =>
      expect(await stage.http.call(url)).toMatchObject({
        state: 'disabled',
        disabled_reason: expect.stringContaining('410'),
      });
    await eventually(disabled);
    await stage.publish('gone', 1);
    expect((await deliveryOf('gone', id!)).state).toBe('waiting');
    await stage.http.call(url, { method: 'PATCH', body: { push: { endpoint: there.url } } });
    await stage.http.call(`${url}/resume`, { method: 'POST' });
    await there.arrived(2);
    expect(gone.requests).toHaveLength(1);
    await ended('gone', id!, 'acked');
  });
});

test('a paused subscription gets nothing, and everything when it is resumed', async () => {
  const hook = await stage.hook('paused');
  const url = `${stage.api}/subscriptions/paused`;
  await stage.http.call(`${url}/pause`, { method: 'POST' });
  const ids = await stage.publish('paused', 10);
  // another one on the same topic shows that the worker has had its turn
  const other = await stage.hook('not-paused', { topic: 'paused' });
  await stage.publish('paused', 1);
  await other.arrived(1);
  expect(hook.requests).toEqual([]);
  expect(await deliveryOf('paused', ids[0]!)).toMatchObject({ state: 'waiting', attempts: 0 });
  await stage.http.call(`${url}/resume`, { method: 'POST' });
  await hook.arrived(11);
  expect(hook.requests.every(({ attempt }) => attempt === 1)).toBe(true);
});

test('a PATCH of the endpoint holds for what is sent from then on', async () => {
  const before = await stage.hook('moving');
  const after = stage.receiver.endpoint('/moved');
  await stage.publish('moving', 1);
  await before.arrived(1);
  const body = { push: { endpoint: after.url, headers: { 'x-tenant': 'a' } } };
  await stage.http.call(`${stage.api}/subscriptions/moving`, { method: 'PATCH', body });
  // told by NOTIFY: one event after the other until the worker has heard of it
  await eventually(async () => {
    await stage.publish('moving', 1);
    expect(after.requests.length).toBeGreaterThan(0);
  });
  const seen = before.requests.length;
  await stage.publish('moving', 5);
  await after.arrived(after.requests.length + 5);
  expect(before.requests).toHaveLength(seen);
  expect(after.requests.at(-1)!.headers['x-tenant']).toBe('a');
});

test('client errors are tried again where the policy says so', async () => {
  const hook = await stage.hook('patient', { behaviour: first({ status: 400 }) });
  const body = { retry_policy: { retry_client_errors: true } };
  await stage.http.call(`${stage.api}/subscriptions/patient`, { method: 'PATCH', body });
  await eventually(async () => {
    const [id] = await stage.publish('patient', 1);
    const delivery = await ended('patient', id!, 'acked');
    // the worker may have heard of the change only after the first
    expect(delivery.history[0]!.status).not.toBeNull();
  });
  expect(hook.requests.some(({ status }) => status === 204)).toBe(true);
});

test('attempts used up: a dead letter with status and error; a redrive sends it again under the same webhook-id', async () => {
  const hook = await stage.hook('unlucky', {
    behaviour: { status: 500, body: 'no luck' },
    maxAttempts: 3,
  });
  const [id] = await stage.publish('unlucky', 1, { text: 'grüß dich' });
  await ended('unlucky', id!, 'dead');
  expect(hook.requests.map(({ attempt }) => attempt)).toEqual([1, 2, 3]);
  const url = `${stage.api}/subscriptions/unlucky/dlq`;
  const { items } = await stage.http.call<{ items: object[] }>(url);
  expect(items).toMatchObject([
    { reason: 'max_attempts', attempts: 3, last_status: 500, last_error: 'HTTP 500' },
  ]);
  hook.behaviour = { status: 204 };
  const { job_id: jobId } = await stage.http.call<{ job_id: string }>(`${url}/redrive`, {
    method: 'POST',
    body: { rate_per_second: 100 },
  });
  await eventually(() => expect(hook.requests.at(-1)!.status).toBe(204));
  const last = hook.requests.at(-1)!;
  expect([last.eventId, last.attempt]).toEqual([id, 1]);
  expect(last.body).toBe(hook.requests[0]!.body);
  const job = async (): Promise<void> =>
    expect(await stage.http.call(`${stage.api}/jobs/${jobId}`)).toMatchObject({
      state: 'succeeded',
      total: 1,
      done: 1,
    });
  await eventually(job);
});

test('an event is sent byte for byte, signed, with its context and attributes', async () => {
  const hook = await stage.hook('exact');
  const data = '{"b" : 1.50,\t"a":"\\u00fc", "big":12345678901234567890}';
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  await stage.http.call(`${stage.api}/topics/exact/events`, {
    body: `{"type":"order.created","source":"/shop","subject":"ü 17","traceparent":"${traceparent}","data":${data}}`,
  });
  await hook.arrived(1);
  const [request] = hook.requests;
  expect(request!.body).toBe(data);
  expect(request!.headers).toMatchObject({
    'content-type': 'application/json',
    'ce-specversion': '1.0',
    'ce-type': 'order.created',
    'ce-source': '/shop',
    'ce-subject': '%C3%BC%2017',
    'webhook-id': request!.eventId,
    traceparent,
  });
  expect(hook.verified).toBe(1);
});
