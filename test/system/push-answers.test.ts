/**
 * Goal: what an endpoint answers decides what becomes of the event, as the table says.
 *
 * Method: one worker as a process, an endpoint per row of the table that answers so once and 204 afterwards.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';

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
