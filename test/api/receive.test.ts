import { connect } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startApp, type TestApp } from '../support/app.ts';
import { cloneDatabase } from '../support/database.ts';
import { HttpClient, NoAnswer } from '../support/http-client.ts';
import { aTopicWithReader, type Message } from '../support/topic-with-reader.ts';
import { queueRows } from '../support/verbs.ts';

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let app: TestApp;
beforeAll(async () => {
  database = await cloneDatabase();
  app = await startApp(database.url);
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

const setUp = (readerSettings?: object) => aTopicWithReader(app, {}, readerSettings);

const leasesOf = (messages: readonly Message[]): string[] =>
  messages.map((message) => message.lease_id);

describe('receive', () => {
  test('10 messages by default, with what belongs to a delivery; nothing is an empty list', async () => {
    const { publishMany, receive, post } = await setUp({ visibility_timeout_seconds: 45 });
    expect(await receive()).toEqual([]);
    await publishMany(15);
    const [message, ...others] = (await post('receive')).json.messages as Message[];
    expect(others).toHaveLength(9);
    expect(message).toMatchObject({
      delivery_attempt: 1,
      event_id: expect.stringMatching(/^\d+$/) as string,
    });
    const lasts = Date.parse(message!.lease_expires_at) - Date.parse(message!.published_at);
    expect(lasts).toBeGreaterThan(44_000);
    expect(lasts).toBeLessThan(75_000);
    expect(await receive({ max_messages: 1000 })).toHaveLength(5);
  });

  test('what it may not be', async () => {
    const { post } = await setUp();
    const wrong: [object, string][] = [
      [{ max_messages: 0 }, '/max_messages'],
      [{ max_messages: 1001 }, '/max_messages'],
      [{ max_messages: '1' }, '/max_messages'],
      [{ wait_seconds: 21 }, '/wait_seconds'],
      [{ visibility_timeout_seconds: 0 }, '/visibility_timeout_seconds'],
      [{ visibility_timeout_seconds: 43_201 }, '/visibility_timeout_seconds'],
      [{ wait: 1 }, '/wait'],
    ];
    for (const [body, pointer] of wrong) {
      const answer = await post('receive', body);
      expect(answer.json, JSON.stringify(body)).toMatchObject({
        status: 422,
        code: 'invalid_request',
        errors: [{ pointer }],
      });
    }
    const unknown = await app.call('POST /api/v1/subscriptions/nobody/receive', {});
    expect(unknown.json).toMatchObject({ status: 404, code: 'subscription_not_found' });
  });

  test('a long poll is answered by a publish at once, also on another replica', async () => {
    await using other = await startApp(database.url);
    const { publishMany, receive, reader } = await setUp();
    const here = receive({ wait_seconds: 20, max_messages: 1 });
    const there = other.call(`POST /api/v1/subscriptions/${reader}/receive`, {
      wait_seconds: 20,
      max_messages: 1,
    });
    // both wait: the claim of either would otherwise be the first
    await expect.poll(async () => (await waitingPolls(app)) + (await waitingPolls(other))).toBe(2);
    const startedAt = performance.now();
    await publishMany(2);
    const [a, b] = await Promise.all([here, there]);
    const took = performance.now() - startedAt;
    expect([a.length, b.json.messages.length]).toEqual([1, 1]);
    expect(took).toBeLessThan(1000);
  });

  test('a client that goes away leaves no poll behind, and no lease', async () => {
    const { publishMany, receive, reader, id } = await setUp();
    using client = new HttpClient(app.adminKey);
    const leaver = new AbortController();
    const body = { wait_seconds: 20 };
    const gone = client.send(`${app.address}/api/v1/subscriptions/${reader}/receive`, {
      body,
      signal: leaver.signal,
    });
    await expect.poll(async () => waitingPolls(app)).toBe(1);
    leaver.abort();
    await expect(gone).rejects.toBeInstanceOf(NoAnswer);
    await expect.poll(async () => waitingPolls(app)).toBe(0);
    const ids = await publishMany(3);
    const rows = await queueRows(app.db, id);
    expect(rows.map((row) => [row.event_count, row.attempt])).toEqual([[3, 0]]);
    expect((await receive()).map((message) => message.event_id)).toEqual(ids);
  });

  test('what could not be written to a client that went away is released', async () => {
    const { publishMany, receive, reader, id } = await setUp();
    const ids = await publishMany(3);
    // the client goes while its events are claimed
    const { receiver } = app.deps;
    const original = receiver.receive.bind(receiver);
    const leaver = new AbortController();
    receiver.receive = async (subscription, request) => {
      const events = await original(subscription, {
        ...request,
        signal: new AbortController().signal,
      });
      if (events.length > 0) {
        leaver.abort();
        await new Promise<void>((resolve) => {
          request.signal?.addEventListener('abort', () => resolve(), { once: true });
          if (request.signal?.aborted) resolve();
        });
      }
      return events;
    };
    using client = new HttpClient(app.adminKey);
    const gone = client.send(`${app.address}/api/v1/subscriptions/${reader}/receive`, {
      body: {},
      signal: leaver.signal,
    });
    await expect(gone).rejects.toBeInstanceOf(NoAnswer);
    receiver.receive = original;
    await expect
      .poll(async () =>
        (await queueRows(app.db, id)).map((row) => [row.attempt, row.lease_expires_at]),
      )
      .toEqual([[0, null]]);
    expect(
      (await receive()).map((message) => [message.event_id, message.delivery_attempt]),
    ).toEqual(ids.map((each) => [each, 1]));
  });

  test('an answer that a client does not read to its end is released', async () => {
    const { publish, reader, id } = await setUp();
    const data = 'x'.repeat(250_000);
    const events = Array.from({ length: 30 }, () => ({ type: 't', data }));
    expect((await publish(events)).status).toBe(202);
    const socket = connect(Number(new URL(app.address).port), '127.0.0.1').pause();
    const body = '{"max_messages":30}';
    socket.write(
      [
        `POST /api/v1/subscriptions/${reader}/receive HTTP/1.1`,
        'host: test',
        `authorization: Bearer ${app.adminKey}`,
        'content-type: application/json',
        `content-length: ${body.length}`,
        '',
        body,
      ].join('\r\n'),
    );
    // more than fits into the buffers of a connection: it cannot be written to its end
    const states = async () =>
      new Set(
        (await queueRows(app.db, id)).map(
          (row) => `${row.attempt} ${row.lease_expires_at !== null}`,
        ),
      );
    await expect.poll(states).toEqual(new Set(['1 true']));
    socket.destroy();
    await expect.poll(states).toEqual(new Set(['0 false']));
  });

  test('a paused subscription hands out nothing', async () => {
    const { publishMany, receive, id } = await setUp();
    await publishMany(1);
    await app.db
      .updateTable('subscription')
      .set({ state: 'paused' })
      .where('id', '=', id)
      .execute();
    expect(await receive({ wait_seconds: 0.05 })).toEqual([]);
    await app.db
      .updateTable('subscription')
      .set({ state: 'active' })
      .where('id', '=', id)
      .execute();
    expect(await receive()).toHaveLength(1);
  });
});

describe('ack, nack, extend', () => {
  test('an ack ends the delivery; to repeat it succeeds; a lease that is lost or none says so', async () => {
    const { publishMany, receive, post, id } = await setUp();
    await publishMany(3);
    const leases = leasesOf(await receive());
    const first = await post('ack', { lease_ids: leases.slice(0, 2) });
    expect([first.status, first.json]).toEqual([
      200,
      { succeeded: leases.slice(0, 2), failed: [] },
    ]);
    const other = await setUp();
    await other.publishMany(1);
    const [foreign] = leasesOf(await other.receive());
    const stale = leases[2]!.replace(/-1-(\w+)$/, '-7-$1');
    const mixed = await post('ack', {
      lease_ids: [leases[0], 'no lease', stale, foreign, leases[2]],
    });
    expect([mixed.status, mixed.json]).toEqual([
      200,
      {
        succeeded: [leases[0], leases[2]],
        failed: [
          { lease_id: 'no lease', code: 'invalid_lease_id' },
          { lease_id: stale, code: 'lease_lost' },
          { lease_id: foreign, code: 'invalid_lease_id' },
        ],
      },
    ]);
    const none = await post('ack', { lease_ids: [stale, 'x'] });
    expect(none.status).toBe(409);
    expect(none.headers['content-type']).toMatch(/^application\/json/);
    expect(none.json).toEqual({
      succeeded: [],
      failed: [
        { lease_id: stale, code: 'lease_lost' },
        { lease_id: 'x', code: 'invalid_lease_id' },
      ],
    });
    expect(await queueRows(app.db, id)).toEqual([]);
  });

  test('a nack with a delay, at once, and into the dead letters', async () => {
    const { publishMany, receive, post, id, reader } = await setUp();
    await publishMany(4);
    const [a, b, c, d] = leasesOf(await receive());
    const answer = await post('nack', {
      leases: [
        { lease_id: a, delay_seconds: 60 },
        { lease_id: b, delay_seconds: 0, reason: 'busy' },
        { lease_id: c, dead_letter: true, reason: 'broken' },
      ],
    });
    expect([answer.status, answer.json.succeeded]).toEqual([200, [a, b, c]]);
    const rows = await queueRows(app.db, id);
    expect(rows.filter((row) => row.lease_expires_at === null && row.due_in > 50)).toHaveLength(1);
    const [again] = await receive();
    expect(again?.delivery_attempt).toBe(2);
    const dead = await app.call(`GET /api/v1/subscriptions/${reader}/dlq`);
    expect(dead.json.items).toMatchObject([{ reason: 'rejected', last_error: 'broken' }]);
    const both = await post('nack', {
      leases: [{ lease_id: d, delay_seconds: 1, dead_letter: true }],
    });
    expect(both.json).toMatchObject({
      status: 422,
      errors: [{ pointer: '/leases/0/delay_seconds' }],
    });
  });

  test('extend prolongs, and tells the new deadlines', async () => {
    const { publishMany, receive, post } = await setUp();
    await publishMany(1);
    const [message] = await receive();
    const answer = await post('extend', {
      lease_ids: [message!.lease_id, 'x'],
      visibility_timeout_seconds: 600,
    });
    expect(answer.status).toBe(200);
    expect(answer.json.failed).toEqual([{ lease_id: 'x', code: 'invalid_lease_id' }]);
    const [extended] = answer.json.succeeded as { lease_id: string; lease_expires_at: string }[];
    expect(extended?.lease_id).toBe(message!.lease_id);
    expect(
      Date.parse(extended!.lease_expires_at) - Date.parse(message!.lease_expires_at),
    ).toBeGreaterThan(500_000);
    const shorter = await post('extend', {
      lease_ids: [message!.lease_id],
      visibility_timeout_seconds: 1,
    });
    expect(shorter.json.succeeded).toEqual([extended]);
    await post('ack', { lease_ids: [message!.lease_id] });
    const lost = await post('extend', {
      lease_ids: [message!.lease_id],
      visibility_timeout_seconds: 1,
    });
    expect([lost.status, lost.json.failed]).toEqual([
      409,
      [{ lease_id: message!.lease_id, code: 'lease_lost' }],
    ]);
  });

  test('what they may not be', async () => {
    const { post } = await setUp();
    const wrong: [string, object, string][] = [
      ['ack', {}, '/lease_ids'],
      ['ack', { lease_ids: [] }, '/lease_ids'],
      ['ack', { lease_ids: Array.from({ length: 1001 }, () => 'x') }, '/lease_ids'],
      ['ack', { lease_ids: [1] }, '/lease_ids/0'],
      ['nack', { leases: [{ lease_id: 'x', delay_seconds: -1 }] }, '/leases/0/delay_seconds'],
      ['nack', { leases: [{ lease_id: 'x', delay: 1 }] }, '/leases/0/delay'],
      ['nack', { leases: [{}] }, '/leases/0/lease_id'],
      [
        'extend',
        { lease_ids: ['x'], visibility_timeout_seconds: 0 },
        '/visibility_timeout_seconds',
      ],
    ];
    for (const [verb, body, pointer] of wrong) {
      const answer = await post(verb, body);
      expect(answer.json, verb).toMatchObject({
        status: 422,
        code: 'invalid_request',
        errors: [{ pointer }],
      });
    }
  });
});

/** By the metric of the replica. */
async function waitingPolls(replica: TestApp): Promise<number> {
  const text = await replica.deps.metrics.registry.metrics();
  return Number(/^broker_receive_waiting\{[^}]*\} (\d+)/m.exec(text)?.[1] ?? 0);
}
