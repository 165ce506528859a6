/**
 * Goal: one look at the traces tells the story of an event over three processes: publish, group commit, receive, process, settle.
 * What is not kept costs no spans; what is told has no secrets; and a collector that fails changes nothing else.
 *
 * Method: API, worker and reaper as processes that send to a collector in the test's own process, in protobuf. The share of traces that
 * they keep of themselves is next to nothing, so that all that comes is there because the caller's trace is kept, or because it is rare.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import type { ReceivedSpan } from '#test/support/otlp-protobuf.ts';
import { OtlpReceiver } from '#test/support/otlp-receiver.ts';
import { PushStage } from '#test/support/push-stage.ts';
import { aTrace, linksTo, storyTeller, tracingTo } from '#test/support/trace-story.ts';

const kinds = { internal: 1, server: 2, client: 3, producer: 4, consumer: 5 };
const next = { 'event_broker.delivery_attempt': 2 };
const planted = ['hidden-data', 'hidden-query', 'hidden-header', 'hidden-reason'];

const { spanLinkedTo, childNamed, storyOf } = storyTeller(() => collector);

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let collector: OtlpReceiver;
let stage: PushStage;

beforeAll(async () => {
  database = await cloneDatabase();
  collector = await OtlpReceiver.start();
  const env = tracingTo(collector.endpoint);
  stage = await PushStage.start({ databaseUrl: database.url, workers: 1, env });
});

afterAll(async () => {
  await stage[Symbol.asyncDispose]();
  await collector[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

async function publish(
  topic: string,
  event: object,
  headers: Record<string, string> = {},
): Promise<string> {
  const url = `${stage.api}/topics/${topic}/events`;
  return (await stage.http.call<{ id: string }>(url, { body: event, headers })).id;
}

describe('an event that is pushed', () => {
  test('is one connected story over the processes', async () => {
    const hook = await stage.hook('orders');
    const caller = aTrace();
    const { traceparent } = caller;
    const id = await publish('orders', { type: 'order.created' }, { traceparent });

    const [server] = await collector.spansNamed('POST /api/v1/topics/:topic/events');
    expect(server).toMatchObject({
      resource: { 'service.name': 'broker-api', 'service.instance.id': 'api-1' },
      kind: kinds.server,
      traceId: caller.traceId,
      parentSpanId: caller.spanId,
      attributes: {
        'http.route': '/api/v1/topics/:topic/events',
        'http.response.status_code': 202,
      },
    });
    const send = await childNamed('send orders', server!);
    expect(send).toMatchObject({
      kind: kinds.client,
      attributes: {
        'messaging.system': 'event_broker',
        'messaging.operation.type': 'send',
        'messaging.destination.name': 'orders',
        'messaging.message.id': id,
      },
    });
    expect(send.attributes).not.toHaveProperty('messaging.batch.message_count');
    const batch = await childNamed('publish_batch orders', send);
    expect(batch).toMatchObject({
      kind: kinds.internal,
      attributes: { 'messaging.batch.message_count': 1 },
    });
    expect(linksTo(send)(batch)).toBe(true);
    const call = await childNamed('broker.publish_batch', batch);
    expect(call.attributes['db.query.text']).toMatch(/from broker\.publish_batch\(\$1/);

    const receive = await spanLinkedTo('receive orders', caller);
    expect(receive).toMatchObject({
      resource: { 'service.name': 'broker-worker' },
      kind: kinds.client,
      parentSpanId: '',
      attributes: { 'messaging.batch.message_count': 1 },
      links: [{ attributes: { 'messaging.message.id': id, 'event_broker.delivery_attempt': 1 } }],
    });
    const process = await spanLinkedTo('process orders', caller);
    expect(process).toMatchObject({
      kind: kinds.consumer,
      parentSpanId: '',
      attributes: {
        'messaging.message.id': id,
        'event_broker.delivery_attempt': 1,
        'event_broker.outcome': 'acked',
      },
      status: { code: 0 },
    });
    expect(linksTo(receive)(process)).toBe(true);
    expect(process.traceId).not.toBe(caller.traceId);
    const post = await childNamed('POST', process);
    expect(post).toMatchObject({
      kind: kinds.client,
      attributes: { 'http.response.status_code': 204 },
    });
    const settle = await childNamed('settle orders', process);
    expect(settle).toMatchObject({ kind: kinds.client });
    expect(linksTo(process)(settle)).toBe(true);
    await childNamed('broker.settle', settle);

    // the attribute is where the event was made; the header is this hop
    const { headers } = hook.requestsOf(id)[0]!;
    expect(headers['ce-traceparent']).toBe(traceparent);
    expect(headers['traceparent']).toBe(`00-${post.traceId}-${post.spanId}-01`);
  });

  test('has a bounded number of spans, of the batch and of each event', async () => {
    const single = aTrace();
    await publish('orders', { type: 'single' }, single);
    await spanLinkedTo('process orders', single);
    const many = aTrace();
    const body = Array.from({ length: 100 }, (_, n) => ({ type: 'many', data: { n } }));
    await stage.http.call(`${stage.api}/topics/orders/events`, { body, headers: many });
    await collector.spansNamed('process orders', { count: 100, fits: linksTo(many) });
    const settled = (): number =>
      storyOf(many)
        .filter(({ name }) => name === 'settle orders')
        .reduce((sum, span) => sum + Number(span.attributes['messaging.batch.message_count']), 0);
    await eventually(() => expect(settled()).toBe(100));

    const [ofOne, ofMany] = [storyOf(single).length, storyOf(many).length];
    console.log(`spans of an event that comes alone: ${ofOne}; of 100 in one publish: ${ofMany}`);
    // request, send, batch, call; receive; process, POST, settle, call
    expect(ofOne).toBeLessThanOrEqual(9);
    expect(ofMany).toBeGreaterThan(200);
    expect(ofMany).toBeLessThanOrEqual(4 + 100 * 5);
  });

  test('that is tried again shows each attempt, and why', async () => {
    const caller = aTrace();
    await stage.hook('billing', {
      behaviour: ({ attempt }) => ({ status: attempt === 1 ? 500 : 200 }),
    });
    const id = await publish('billing', { type: 'x' }, caller);
    const second = await spanLinkedTo('process billing', caller, next);
    const first = await spanLinkedTo('process billing', caller, {
      'event_broker.delivery_attempt': 1,
    });
    expect(first).toMatchObject({
      attributes: {
        'messaging.message.id': id,
        'error.type': '500',
        'event_broker.outcome': 'nacked',
      },
      status: { code: 2 },
    });
    expect(second.attributes).toMatchObject({ 'event_broker.outcome': 'acked' });
    expect(second.attributes).not.toHaveProperty('error.type');
    expect(second.traceId).not.toBe(first.traceId);
    // the log says where to look
    const [worker] = stage.cluster.workers;
    await eventually(() =>
      expect(worker!.logs).toContainEqual(
        expect.objectContaining({ trace_id: first.traceId, span_id: first.spanId }),
      ),
    );
  });

  test('that was not answered says why in one word', async () => {
    const caller = aTrace();
    await stage.hook('silent', {
      behaviour: ({ attempt }) => (attempt === 1 ? 'hang' : { status: 200 }),
      timeoutMs: 1000,
    });
    await publish('silent', { type: 'x' }, caller);
    await spanLinkedTo('process silent', caller, { 'error.type': 'timeout' });
    await spanLinkedTo('process silent', caller, next);
  });

  test('that died and was redriven is the same story still; the job is a span of the reaper', async () => {
    const caller = aTrace();
    const hook = await stage.hook('fragile', { behaviour: { status: 500 }, maxAttempts: 1 });
    await publish('fragile', { type: 'x' }, caller);
    const dlq = `${stage.api}/subscriptions/fragile/dlq`;
    await eventually(async () => {
      const { items } = await stage.http.call<{ items: unknown[] }>(dlq);
      expect(items).toHaveLength(1);
    });
    hook.behaviour = { status: 200 };
    await stage.http.call(`${dlq}/redrive`, { body: {} });
    await spanLinkedTo('process fragile', caller, { 'event_broker.outcome': 'acked' });
    const [job] = await collector.spansNamed('job redrive', {
      fits: (span) => span.attributes['event_broker.redriven_events'] === 1,
    });
    expect(job).toMatchObject({ resource: { 'service.name': 'broker-reaper' }, parentSpanId: '' });
  });

  test('of a worker that was killed goes on; what the leader took back is a span', async () => {
    const caller = aTrace();
    const hook = await stage.hook('crash', {
      behaviour: ({ attempt }) => (attempt === 1 ? 'hang' : { status: 200 }),
    });
    await publish('crash', { type: 'x' }, caller);
    await hook.arrived(1);
    const [worker] = stage.cluster.workers;
    await worker!.kill();
    await worker!.start();
    await spanLinkedTo('process crash', caller, next);
    const [duty] = await collector.spansNamed('duty take_over', {
      fits: (span) => span.attributes['event_broker.taken_over_events'] === 1,
    });
    expect(duty).toMatchObject({
      resource: { 'service.name': 'broker-reaper' },
      kind: kinds.internal,
      attributes: { 'event_broker.duty': 'take_over' },
    });
  });
});

describe('publishes at the same time', () => {
  test('share a call, which is linked from and to each of them', async () => {
    await stage.hook('busy');
    const callers = Array.from({ length: 60 }, () => aTrace());
    await Promise.all(callers.map((caller) => publish('busy', { type: 'x' }, caller)));
    const ids = new Set(callers.map(({ traceId }) => traceId));
    const sends = await collector.spansNamed('send busy', {
      count: callers.length,
      fits: ({ traceId }) => ids.has(traceId),
    });
    const storedOf = (batch: ReceivedSpan): number =>
      Number(batch.attributes['messaging.batch.message_count']);
    const batches = await eventually(() => {
      const found = collector.named('publish_batch busy');
      expect(found.reduce((sum, batch) => sum + storedOf(batch), 0)).toBe(callers.length);
      return found;
    });
    const shared = batches.filter((batch) => storedOf(batch) > 1);
    expect(shared.length).toBeGreaterThan(0);
    for (const batch of shared) expect(batch.parentSpanId).toBe('');
    for (const send of sends) {
      const [batch, ...others] = batches.filter(linksTo(send));
      expect(others).toEqual([]);
      if (batch!.parentSpanId === '') expect(linksTo(batch!)(send)).toBe(true);
      else expect(batch!.parentSpanId).toBe(send.spanId);
    }
  });
});

describe('the trace of an event', () => {
  /** What a receiver gets. */
  async function receivedBy(topic: string, event: object, headers: Record<string, string>) {
    const hook = await stage.hook(topic);
    const id = await publish(topic, event, headers);
    await eventually(() => expect(hook.requestsOf(id)).toHaveLength(1));
    return hook.requestsOf(id)[0]!.headers;
  }

  test('is its own where it has one, with the state, whatever the request says', async () => {
    const own = aTrace();
    const event = { type: 'x', traceparent: own.traceparent, tracestate: 'vendor=own' };
    const headers = await receivedBy('own', event, {
      traceparent: aTrace().traceparent,
      tracestate: 'vendor=callers',
    });
    expect(headers).toMatchObject({
      'ce-traceparent': own.traceparent,
      'ce-tracestate': 'vendor=own',
    });
    await spanLinkedTo('process own', own);
  });

  test.each([
    'garbage',
    `00-${'0'.repeat(32)}-${'1'.repeat(16)}-01`,
    `ff${aTrace().traceparent.slice(2)}`,
  ])(
    'begins here where the caller sends %s; not kept, it costs no span, and receivers get ids all the same',
    async (traceparent) => {
      const before = collector.named('process begun').length;
      const headers = await receivedBy('begun', { type: 'x' }, { traceparent });
      expect(headers['ce-traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
      expect(headers['traceparent']).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
      expect(String(headers['traceparent']).slice(3, 35)).not.toBe(
        String(headers['ce-traceparent']).slice(3, 35),
      );
      // something that is kept, and comes later
      const kept = aTrace();
      await receivedBy('begun', { type: 'x' }, kept);
      await spanLinkedTo('process begun', kept);
      expect(collector.named('process begun')).toHaveLength(before + 1);
    },
  );
});

describe('an event that is pulled', () => {
  test('is received, given back and acked inside the requests of its consumer, where those are kept', async () => {
    const { http, api } = stage;
    await http.call(`${api}/topics/pull`, { method: 'PUT', body: {} });
    await http.call(`${api}/subscriptions/pull`, {
      method: 'PUT',
      body: { topic: 'pull', type: 'pull' },
    });
    const publisher = aTrace();
    await publish('pull', { type: 'x', data: 'hidden-data' }, publisher);
    const receive = async (headers: Record<string, string>): Promise<string> => {
      const url = `${api}/subscriptions/pull/receive`;
      const { messages } = await http.call<{ messages: { lease_id: string }[] }>(url, {
        body: { wait_seconds: 10 },
        headers,
      });
      return messages[0]!.lease_id;
    };

    // of a consumer that brings no trace, the receive is one of its own
    const lease = await receive({});
    const first = await spanLinkedTo('receive pull', publisher, {});
    expect(first).toMatchObject({ kind: kinds.client, parentSpanId: '' });

    const consumer = aTrace();
    const leases = [{ lease_id: lease, delay_seconds: 0, reason: 'hidden-reason' }];
    await http.call(`${api}/subscriptions/pull/nack`, { body: { leases }, headers: consumer });
    const again = await receive(consumer);
    await http.call(`${api}/subscriptions/pull/ack`, {
      body: { lease_ids: [again] },
      headers: consumer,
    });
    for (const name of ['receive', 'nack', 'ack']) {
      const route = `POST /api/v1/subscriptions/:subscription/${name}`;
      const [server] = await collector.spansNamed(route, {
        fits: ({ traceId }) => traceId === consumer.traceId,
      });
      expect(server).toMatchObject({ kind: kinds.server, parentSpanId: consumer.spanId });
      const span = await childNamed(`${name} pull`, server!);
      expect(span).toMatchObject({
        kind: kinds.client,
        attributes: { 'messaging.batch.message_count': 1 },
      });
      if (name === 'receive') expect(linksTo(publisher)(span)).toBe(true);
      else await childNamed('broker.settle', await childNamed('settle pull', span));
    }
    // a receive that finds nothing
    await http.call(`${api}/subscriptions/pull/receive`, { body: {}, headers: consumer });
    const route = 'POST /api/v1/subscriptions/:subscription/receive';
    await collector.spansNamed(route, { count: 2 });
    expect(collector.named('receive pull')).toHaveLength(2);
  });
});

test('health and metrics make no spans, and nothing that is told has a secret in it', async () => {
  const caller = aTrace();
  const endpoint = stage.receiver.endpoint('/hidden-path-segment');
  await stage.http.call(`${stage.api}/topics/secretive`, { method: 'PUT', body: {} });
  const subscription = await stage.http.call<{ push: { secret: string } }>(
    `${stage.api}/subscriptions/secretive`,
    {
      method: 'PUT',
      body: {
        topic: 'secretive',
        type: 'push',
        push: {
          endpoint: `${endpoint.url}?token=hidden-query`,
          headers: { 'x-token': 'hidden-header' },
        },
      },
      headers: caller,
    },
  );
  await stage.http.call(`${stage.cluster.urls[0]}/api/health`, { headers: caller });
  await stage.http.send(`${stage.cluster.urls[0]}/api/metrics`, { headers: caller });
  await publish('secretive', { type: 'x', data: { card: 'hidden-data' } }, caller);
  const process = await spanLinkedTo('process secretive', caller);
  const post = await childNamed('POST', process);
  expect(post.attributes['url.full']).toBe(`${new URL(endpoint.url).origin}/REDACTED`);

  expect(collector.spans.filter(({ name }) => /health|metrics/.test(name))).toEqual([]);
  expect(collector.spans.map((span) => span.attributes['url.path'])).not.toContain('/api/health');
  const told = Buffer.concat(collector.bodies);
  const secrets = [
    ...planted,
    'hidden-path-segment',
    stage.cluster.adminKey,
    subscription.push.secret,
    decodeURIComponent(new URL(database.url).password) || 'no password',
  ];
  expect(secrets.filter((secret) => told.includes(secret))).toEqual([]);
  // it would be found
  expect(told.includes('order.created')).toBe(true);
});
