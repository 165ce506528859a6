/**
 * Goal: what is published comes to the endpoint of a push subscription, signed and unaltered, until it is accepted or dead; and
 * what is changed about a subscription is what happens from then on.
 *
 * Method: API, worker and reaper as processes, endpoints in the test's own process. Where nothing must come, another subscription of
 * the same topic shows when it would have come. At the end a load with a ledger, in which a worker is killed.
 */
import { Webhook } from 'standardwebhooks';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { Cluster } from '#test/support/cluster.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { describeFindings } from '#test/support/ledger-check.ts';
import { Scenario } from '#test/support/ledger-scenario.ts';
import { everyNth, type Reaction } from '#test/support/push-receiver.ts';
import { PushStage } from '#test/support/push-stage.ts';

interface Attempt {
  readonly attempt: number;
  readonly outcome: string;
  readonly status: number | null;
  readonly error: string | null;
  readonly response: string | null;
  readonly worker: string | null;
}

interface DeliveryItem {
  readonly subscription: string;
  readonly state: string;
  readonly history: readonly Attempt[];
}

const failing: Reaction = { status: 500, body: 'out of order' };

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let stage: PushStage;

beforeAll(async () => {
  database = await cloneDatabase();
  stage = await PushStage.start({ databaseUrl: database.url, workers: 1 });
});

afterAll(async () => {
  await stage[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

/** Publishes one event; returns its id. */
async function publishOne(topic: string, event: unknown = { type: 'test' }): Promise<string> {
  const url = `${stage.api}/topics/${topic}/events`;
  return (await stage.http.call<{ id: string }>(url, { body: event })).id;
}

/** The delivery of an event to a subscription, once it is in this state. */
async function deliveryIn(
  state: string,
  { topic, subscription = topic, id }: { topic: string; subscription?: string; id: string },
): Promise<DeliveryItem> {
  const url = `${stage.api}/topics/${topic}/events/${id}/deliveries`;
  const look = async (): Promise<DeliveryItem> => {
    const { items } = await stage.http.call<{ items: DeliveryItem[] }>(url);
    const item = items.find((each) => each.subscription === subscription);
    if (item?.state !== state) throw new Error(JSON.stringify(item));
    return item;
  };
  return eventually(look, { what: `state ${state}` });
}

async function change(subscription: string, verb: 'pause' | 'resume'): Promise<void> {
  await stage.http.call(`${stage.api}/subscriptions/${subscription}/${verb}`, { method: 'POST' });
}

describe('an event on its way to an endpoint', () => {
  test('comes signed, as it was published, and is acked', async () => {
    const hook = await stage.hook('first');
    const data = '{"total": 12.50, "note":"žluť",\n "big": 12345678901234567890}';
    const attributes = '"id": "o-17", "source": "/shop", "type": "order.created", "subject": "ř"';
    const id = await publishOne('first', `{${attributes}, "data": ${data}}`);
    await hook.arrived(1);
    const [request] = hook.requests;
    expect(request).toMatchObject({ eventId: id, attempt: 1, body: data });
    expect(request?.headers).toMatchObject({
      'content-type': 'application/json',
      'ce-specversion': '1.0',
      'ce-id': 'o-17',
      'ce-source': '/shop',
      'ce-type': 'order.created',
      'ce-subject': '%C5%99',
      'ce-brokereventid': id,
      'webhook-signature': expect.stringMatching(/^v1,/) as string,
    });
    expect([hook.verified, hook.badSignatures]).toEqual([1, []]);
    const other = new Webhook(`whsec_${Buffer.alloc(32).toString('base64')}`);
    const headers = request?.headers as Record<string, string>;
    expect(() => other.verify(data, headers, { jsonParse: false })).toThrow('No matching');
    const { history } = await deliveryIn('acked', { topic: 'first', id });
    expect(history).toMatchObject([{ attempt: 1, outcome: 'acked', status: 204, error: null }]);
    expect(history[0]?.worker).toMatch(/^worker-1/);
  });

  test('is tried again after a 500 and after no answer, under the same id, and each attempt is shown', async () => {
    const reactions: readonly Reaction[] = [failing, 'drop_after_reading', { status: 200 }];
    const hook = await stage.hook('again', {
      behaviour: ({ number }) => reactions[number - 1] ?? 'drop',
    });
    const id = await publishOne('again');
    const { history } = await deliveryIn('acked', { topic: 'again', id });
    expect(hook.requests.map(({ eventId, attempt }) => [eventId, attempt])).toEqual([
      [id, 1],
      [id, 2],
      [id, 3],
    ]);
    expect(hook.badSignatures).toEqual([]);
    expect(history).toMatchObject([
      { outcome: 'nacked', status: 500, error: 'HTTP 500', response: 'out of order' },
      { outcome: 'nacked', status: null, error: expect.any(String) as string, response: null },
      { outcome: 'acked', status: 200, error: null },
    ]);
  });

  test('is a dead letter after max_attempts, and comes under its first id when it is redriven', async () => {
    const hook = await stage.hook('dying', { behaviour: failing, maxAttempts: 3 });
    const id = await publishOne('dying', { type: 'test', data: { n: 1 } });
    const { history } = await deliveryIn('dead', { topic: 'dying', id });
    expect(history.map(({ outcome }) => outcome)).toEqual(['nacked', 'nacked', 'dead']);
    const dlq = `${stage.api}/subscriptions/dying/dlq`;
    expect(await stage.http.call(dlq)).toMatchObject({
      items: [{ reason: 'max_attempts', attempts: 3, last_status: 500, last_error: 'HTTP 500' }],
    });
    expect(hook.requests).toHaveLength(3);

    hook.behaviour = { status: 204 };
    await stage.http.call(`${dlq}/redrive`, { body: {} });
    await eventually(() => expect(hook.requests).toHaveLength(4));
    expect(hook.requests[3]).toMatchObject({ eventId: id, attempt: 1, body: '{"n":1}' });
    expect([hook.verified, hook.badSignatures]).toEqual([4, []]);
    expect(await stage.http.call(dlq)).toMatchObject({ items: [] });
  });
});

describe('a subscription that is changed', () => {
  test('410 disables it; resume sends what has come meanwhile', async () => {
    const hook = await stage.hook('gone', { behaviour: { status: 410 } });
    const control = await stage.hook('gone-control', { topic: 'gone' });
    const url = `${stage.api}/subscriptions/gone`;
    const first = await publishOne('gone');
    await eventually(async () => expect(await stateOf(url)).toBe('disabled'));
    expect(await stage.http.call(url)).toMatchObject({
      disabled_reason: expect.stringContaining('410') as string,
    });
    const second = await publishOne('gone');
    await control.arrived(2);
    expect(hook.requests.map(({ eventId }) => eventId)).toEqual([first]);

    hook.behaviour = { status: 204 };
    await change('gone', 'resume');
    await hook.arrived(2);
    expect(await stateOf(url)).toBe('active');
    for (const id of [first, second]) await deliveryIn('acked', { topic: 'gone', id });
    // what it answered was not about the event
    expect(hook.requestsOf(first).map(({ attempt }) => attempt)).toEqual([1, 1]);
  });

  test('one that is paused gets nothing until it is resumed', async () => {
    const hook = await stage.hook('paused');
    const control = await stage.hook('paused-control', { topic: 'paused' });
    await publishOne('paused');
    await hook.arrived(1);
    await change('paused', 'pause');
    await stage.publish('paused', 50);
    await control.arrived(51);
    expect(hook.requests).toHaveLength(1);
    await change('paused', 'resume');
    await hook.arrived(51);
    expect(hook.requests).toHaveLength(51);
  });

  test('a new endpoint gets what comes from then on, and what the old one refuses', async () => {
    const old = await stage.hook('moved', { behaviour: failing, maxAttempts: 1000 });
    const secret = old.secret;
    const refused = await publishOne('moved');
    await eventually(() => expect(old.requestsOf(refused).length).toBeGreaterThan(0));
    const next = stage.receiver.endpoint('/moved-to');
    next.secret = secret;
    await stage.http.call(`${stage.api}/subscriptions/moved`, {
      method: 'PATCH',
      body: { push: { endpoint: next.url } },
    });
    await next.arrived(1);
    expect(next.eventIds).toEqual([refused]);
    const oldRequests = old.requests.length;
    await stage.publish('moved', 20);
    await next.arrived(21);
    expect(old.requests).toHaveLength(oldRequests);
    expect([next.verified, next.badSignatures]).toEqual([next.requests.length, []]);
  });
});

async function stateOf(url: string): Promise<string> {
  return (await stage.http.call<{ state: string }>(url)).state;
}

test('under load, with a worker killed: nothing lost, nothing acked that was not accepted, each duplicate explained', async () => {
  await using own = await cloneDatabase();
  await using cluster = await Cluster.start({ databaseUrl: own.url, workers: 2 });
  using scenario = await Scenario.open(cluster, {
    databaseUrl: own.url,
    subscriptions: ['billing'],
    pushSubscriptions: ['mailer', 'shaky'],
    push: { timeout_ms: 2000 },
  });
  scenario.endpoint('shaky').behaviour = everyNth(5, failing);
  // time for something to be in flight when its worker is killed
  scenario.endpoint('mailer').behaviour = { status: 204, afterMs: 20 };
  const load = scenario.startLoad();
  await scenario.acceptMore(500);
  scenario.ledger.disrupt();
  await cluster.workers[0]!.kill();
  await scenario.acceptMore(500);
  await cluster.startAll();
  await scenario.acceptMore(500);
  await scenario.drain(load);

  const findings = await scenario.findings();
  console.log(describeFindings(findings));
  expect(findings.violations.length, describeFindings(findings)).toBe(0);
  expect(findings.counts.refused_pushes).toBeGreaterThan(0);
  expect(findings.counts.pushes).toBeGreaterThan(3000);
});
