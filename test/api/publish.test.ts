import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sql } from 'kysely';
import { createDatabase } from '#db/client.ts';
import { startApp, type TestApp } from '../support/app.ts';
import { cloneDatabase } from '../support/database.ts';
import { aTopicWithReader, problemOf } from '../support/topic-with-reader.ts';

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

const setUp = (settings?: object) => aTopicWithReader(app, settings);

describe('answers', () => {
  test('a single event: 202 with its id, and where it can be read', async () => {
    const { topic, publish } = await setUp();
    const answer = await publish({ type: 'order.created', data: { total: 12 } });
    expect(answer.status).toBe(202);
    expect(answer.json).toEqual({ id: expect.stringMatching(/^\d+$/) as string, duplicate: false });
    expect(answer.headers['location']).toBe(`/api/v1/topics/${topic}/events/${answer.json.id}`);
    const read = await app.call(`GET ${answer.headers['location'] as string}`);
    expect(read.json).toEqual({
      event_id: answer.json.id,
      published_at: expect.stringMatching(/Z$/) as string,
      expires_at: expect.stringMatching(/Z$/) as string,
      event: {
        specversion: '1.0',
        id: answer.json.id,
        source: `/topics/${topic}`,
        type: 'order.created',
        brokereventid: answer.json.id,
        data: { total: 12 },
      },
    });
    const deliveries = await app.call(`GET ${answer.headers['location'] as string}/deliveries`);
    expect(deliveries.json.items).toMatchObject([{ state: 'waiting', attempts: 0 }]);
  });

  test('an array: results in its order; one event as an array too', async () => {
    const { publish, receive } = await setUp();
    const answer = await publish([1, 2, 3].map((n) => ({ type: 't', data: n })));
    expect(answer.status).toBe(202);
    const ids = answer.json.results.map((each: { id: string }) => each.id) as string[];
    const messages = await receive({ max_messages: 1000 });
    expect(messages.map((each) => [each.event_id, each.event['data']])).toEqual(
      ids.map((id, i) => [id, i + 1]),
    );
    expect((await publish([{ type: 't' }])).json.results).toHaveLength(1);
  });

  test('every attribute comes back as it went in, extensions beside them', async () => {
    const { publish, receive } = await setUp();
    const event = {
      type: 'täst',
      id: 'o-"17"',
      source: '/shop',
      subject: 's',
      time: '2025-01-31T12:00:00.5+02:00',
      datacontenttype: 'application/json',
      dataschema: 'https://example.com/schema',
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      tracestate: 'a=1',
    };
    const extensions = { tenant: 'a/b', retries: 3, urgent: true };
    const answer = await publish({ ...event, ordering_key: 'k', extensions });
    const [message] = await receive();
    expect(message?.event).toEqual({
      specversion: '1.0',
      ...event,
      partitionkey: 'k',
      ...extensions,
      brokereventid: answer.json.id,
    });
  });

  test('the text of data is handed on untouched', async () => {
    const { topic, publish, post } = await setUp();
    const texts = [
      '12345678901234567890.10',
      '1.0',
      '-0',
      '1E400',
      '{"b":1,"a":{"__proto__":2},"b":3}',
      '{ "space" :\n [ 1 ,\t2 ] }',
      '"\\u00e9é\\/😀\\ud83d\\ude00"',
      'null',
      '[]',
      '""',
    ];
    const answer = await publish(
      `[${texts.map((data) => `{"type":"t","data":${data}}`).join(' , ')}]`,
    );
    expect(answer.status).toBe(202);
    const { text } = await post('receive');
    for (const data of texts) expect(text).toContain(`,"data":${data}}`);
    const id = answer.json.results[1].id as string;
    const read = await app.call(
      `GET ${answer.headers['location'] ?? `/api/v1/topics/${topic}/events/${id}`}`,
    );
    expect(read.text).toContain('"data":1.0}');
  });

  test('absent data and null are two things', async () => {
    const { publish, receive } = await setUp();
    await publish([{ type: 't' }, { type: 't', data: null }]);
    const messages = await receive({ max_messages: 1000 });
    expect(messages.map((each) => 'data' in each.event)).toEqual([false, true]);
  });

  test("a request's trace is kept with the events that carry none", async () => {
    const { publish, receive } = await setUp();
    const own = '00-11111111111111111111111111111111-1111111111111111-01';
    const header = '00-22222222222222222222222222222222-2222222222222222-01';
    await publish([{ type: 't', traceparent: own }, { type: 't' }], {
      traceparent: header,
      tracestate: 'a=1',
    });
    await publish({ type: 't' }, { traceparent: 'nonsense', tracestate: 'a=1' });
    const messages = await receive({ max_messages: 1000 });
    expect(messages.map(({ event }) => [event['traceparent'], event['tracestate']])).toEqual([
      [own, undefined],
      [header, 'a=1'],
      [undefined, undefined],
    ]);
  });
});

describe('refusals', () => {
  test('bodies that are not what they should be, with pointers', async () => {
    const { publish } = await setUp();
    const answer = await publish([{ type: 't' }, { data: 1 }, { type: 't', colour: 'red' }]);
    expect(problemOf(answer)).toEqual([422, 'invalid_event']);
    expect(answer.json.errors.map((each: { pointer: string }) => each.pointer)).toEqual([
      '/1/type',
      '/2/colour',
    ]);
    expect(problemOf(await publish('{"type":'))).toEqual([422, 'invalid_json']);
    expect(problemOf(await publish(''))).toEqual([422, 'invalid_json']);
    expect(problemOf(await publish([]))).toEqual([422, 'invalid_event']);
    const many = await publish(Array.from({ length: 1001 }, () => ({ type: 't' })));
    expect(problemOf(many)).toEqual([422, 'too_many_events']);
    const large = await publish({ type: 't', data: 'x'.repeat(262_144) });
    expect(problemOf(large)).toEqual([422, 'event_too_large']);
  });

  test('content types other than JSON', async () => {
    const { publish } = await setUp();
    for (const type of [
      'text/plain',
      'application/json; charset=latin1',
      'application/jsonx',
      'application/xml',
    ]) {
      expect(problemOf(await publish('{"type":"t"}', { 'content-type': type })), type).toEqual([
        415,
        'unsupported_media_type',
      ]);
    }
    const structured = await publish('{}', {
      'content-type': 'application/cloudevents-batch+json',
    });
    expect(structured.json).toMatchObject({
      code: 'unsupported_media_type',
      detail: expect.stringContaining('not taken yet') as string,
    });
    for (const type of [
      'application/json',
      'application/json;charset=utf-8',
      'Application/JSON; charset="UTF-8"',
    ]) {
      expect((await publish('{"type":"t"}', { 'content-type': type })).status, type).toBe(202);
    }
  });

  test('a body over the limit, an unknown topic', async () => {
    const { publish } = await setUp();
    expect(problemOf(await publish(' '.repeat(9 << 20)))).toEqual([413, 'body_too_large']);
    expect(problemOf(await app.call('POST /api/v1/topics/nothing/events', { type: 't' }))).toEqual([
      404,
      'topic_not_found',
    ]);
    expect(problemOf(await app.call('GET /api/v1/topics/nothing/events/1'))).toEqual([
      404,
      'topic_not_found',
    ]);
    const { topic } = await setUp();
    expect(problemOf(await app.call(`GET /api/v1/topics/${topic}/events/1`))).toEqual([
      404,
      'event_not_found',
    ]);
    expect(problemOf(await app.call(`GET /api/v1/topics/${topic}/events/1/deliveries`))).toEqual([
      404,
      'event_not_found',
    ]);
  });

  test('a time more than 30 days ahead, and nothing of its request is stored', async () => {
    const { publish, receive } = await setUp();
    const far = new Date(Date.now() + 31 * 86_400_000).toISOString();
    const near = new Date(Date.now() + 86_400_000).toISOString();
    const single = await publish({ type: 't', available_at: far });
    expect(single.json).toMatchObject({
      status: 422,
      code: 'invalid_event',
      errors: [{ pointer: '/available_at' }],
    });
    const many = await publish([
      { type: 't' },
      { type: 't', available_at: near },
      { type: 't', available_at: far },
    ]);
    expect(many.json).toMatchObject({
      status: 422,
      code: 'invalid_event',
      errors: [{ pointer: '/2/available_at' }],
    });
    expect(await receive({ max_messages: 1000 })).toEqual([]);
  });

  test('a topic past its max_backlog, with the numbers; also while no reaper samples', async () => {
    const { publish, receive, reader } = await setUp({ max_backlog: 3 });
    // as if the last sample were old: the replica samples itself
    const sample = async (): Promise<void> => {
      await sql`update broker.backlog_sampling set sampled_at = clock_timestamp() - interval '6 seconds'`.execute(
        app.db,
      );
      await app.deps.admission.refresh();
    };
    await publish([{ type: 't' }, { type: 't' }, { type: 't' }]);
    await sample();
    const refused = await publish({ type: 't' });
    expect(problemOf(refused)).toEqual([503, 'backlog_full']);
    expect(refused.json.detail).toBe(
      `The subscription ${reader} has 3 events waiting; the topic's max_backlog is 3.`,
    );
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    expect(await receive({ max_messages: 1000 })).toHaveLength(3);
    await sample();
    expect((await publish({ type: 't' })).status).toBe(202);
  });
});

test('a connection that breaks in the middle of a publish: 503, and the outcome is said to be unknown', async () => {
  const { publish, receive } = await setUp();
  await using other = createDatabase({
    url: database.url,
    applicationName: 'broker-test',
    poolMax: 1,
    statementTimeoutMs: 5000,
  });
  const locked = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const holder = other.db.transaction().execute(async (trx) => {
    await sql`lock table broker.queue in exclusive mode`.execute(trx);
    locked.resolve();
    await release.promise;
  });
  await locked.promise;
  const waiting = publish({ type: 't' });
  // its call waits for the lock; end it there
  await expect
    .poll(
      async () => {
        const { rows } = await sql<{
          ended: boolean;
        }>`select pg_terminate_backend(pid) as ended from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like '%publish_batch%'`.execute(
          app.db,
        );
        return rows.length;
      },
      { interval: 5 },
    )
    .toBe(1);
  const answer = await waiting;
  expect(problemOf(answer)).toEqual([503, 'outcome_unknown']);
  expect(answer.json.detail).toContain('Idempotency-Key');
  release.resolve();
  await holder;
  expect((await publish({ type: 't' })).status).toBe(202);
  expect(await receive({ max_messages: 1000 })).toHaveLength(1);
});
