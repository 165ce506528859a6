import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createDatabase, type Database } from '#db/client.ts';
import { publishBatch, type PublishRequest } from '#db/publish.ts';
import { createMetrics } from '#runtime/metrics.ts';
import { createPublisher, type PublishAnswer } from '../../apps/api/publish/publisher.ts';
import { requestKey } from '../../apps/api/publish/idempotency.ts';
import { aSubscription, aTopic, anEvent } from '../support/factory.ts';
import { openVerbDatabase, queueRows, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

/** Passes statements on and counts them. */
function counted(db: Database): { db: Database; statements: () => number } {
  let statements = 0;
  const plugged = db.withPlugin({
    transformQuery: (args) => {
      statements += 1;
      return args.node;
    },
    transformResult: async (args) => args.result,
  });
  return { db: plugged, statements: () => statements };
}

const limits = { bufferEventsMax: 20_000, bufferBytesMax: 64 << 20 };

async function setUp(options: { db?: Database; limits?: typeof limits } = {}) {
  const id = await aTopic(database.db);
  const subscription = await aSubscription(database.db, id);
  const woken: number[] = [];
  const publisher = createPublisher({
    db: options.db ?? database.db,
    metrics: createMetrics({ service: 'test' }),
    wakeups: { wake: (_topic, ids) => void woken.push(...ids) },
    limits: options.limits ?? limits,
  });
  const topic = { id, name: 'orders' };
  const publish = (request: PublishRequest, bytes = 100) =>
    publisher.publish(topic, request, bytes);
  return { db: database.db, topic, subscription, publisher, publish, woken };
}

function keyed(key: string, body = key): PublishRequest {
  return { events: [anEvent()], ...requestKey(key, Buffer.from(body)) };
}

function idOf(answer: PublishAnswer): string {
  return answer.status === 'published' ? (answer.results[0]?.id ?? '') : answer.status;
}

async function eventCount(db: Database, topicId: number): Promise<number> {
  const { rows } = await sql<{ count: number }>`select count(*)::int as count from broker.event
    where topic_id = ${topicId}`.execute(db);
  return rows[0]?.count ?? 0;
}

test('64 parallel publishes with one key make one event, and all get its id', async () => {
  const { db, topic, publish } = await setUp();
  const answers = await Promise.all(Array.from({ length: 64 }, () => publish(keyed('k', 'body'))));
  expect(new Set(answers.map(idOf)).size).toBe(1);
  const outcomes = answers.flatMap((answer) =>
    answer.status === 'published' ? answer.results.map((each) => each.outcome) : [answer.status],
  );
  expect(outcomes.filter((outcome) => outcome === 'published')).toHaveLength(1);
  expect(outcomes.filter((outcome) => outcome === 'duplicate')).toHaveLength(63);
  expect(await eventCount(db, topic.id)).toBe(1);
});

test('64 parallel publishes with one key over two replicas make one event too', async () => {
  const { db, topic, publish } = await setUp();
  const other = createPublisher({
    db: database.another(2).db,
    metrics: createMetrics({ service: 'test' }),
    wakeups: { wake: () => undefined },
    limits,
  });
  const answers = await Promise.all(
    Array.from({ length: 64 }, (_, i) =>
      i % 2 === 0 ? publish(keyed('k', 'body')) : other.publish(topic, keyed('k', 'body'), 100),
    ),
  );
  expect(new Set(answers.map(idOf)).size).toBe(1);
  expect(await eventCount(db, topic.id)).toBe(1);
});

test('a key twice in one batch: the second is a duplicate; with another body it is a conflict, and nobody else suffers', async () => {
  const { db, topic, publish } = await setUp();
  const answers = await Promise.all([
    publish(keyed('k', 'one')),
    publish(keyed('k', 'one')),
    publish(keyed('k', 'two')),
    publish({ events: [anEvent()] }),
  ]);
  const outcomes = answers.map((answer) =>
    answer.status === 'published' ? answer.results[0]?.outcome : answer.status,
  );
  expect(outcomes).toEqual(['published', 'duplicate', 'request_conflict', 'published']);
  expect(await eventCount(db, topic.id)).toBe(2);
});

test('a key that another connection holds: in progress for that one alone, its neighbours are published', async () => {
  const { db, topic, publish } = await setUp();
  const held = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const holder = database
    .another()
    .db.transaction()
    .execute(async (trx) => {
      await publishBatch(trx, topic.id, [keyed('held', 'body')]);
      held.resolve();
      await release.promise;
    });
  await held.promise;
  const answers = await Promise.all([
    publish({ events: [anEvent(), anEvent()] }),
    publish(keyed('a')),
    publish(keyed('held', 'body')),
    publish(keyed('b')),
    publish(keyed('held', 'body')),
    publish({ events: [anEvent()] }),
  ]);
  const statuses = answers.map((answer) => answer.status);
  expect(statuses).toEqual([
    'published',
    'published',
    'in_progress',
    'published',
    'in_progress',
    'published',
  ]);
  expect(await eventCount(db, topic.id)).toBe(5);

  // it is known now: it is tried by itself, and its topic does not wait for it
  const order: string[] = [];
  const note = (name: string) => (answer: PublishAnswer) =>
    void order.push(`${name} ${answer.status}`);
  await Promise.all([
    publish(keyed('held', 'body')).then(note('held')),
    publish(keyed('c')).then(note('c')),
    publish({ events: [anEvent()] }).then(note('keyless')),
  ]);
  expect(order.at(-1)).toBe('held in_progress');
  expect(order.toSorted()).toEqual(['c published', 'held in_progress', 'keyless published']);

  release.resolve();
  await holder;
  const after = await publish(keyed('held', 'body'));
  expect(after).toMatchObject({ status: 'published', results: [{ outcome: 'duplicate' }] });
});

test('a poisoned request fails alone: its neighbours are published', async () => {
  const { db, topic, publish } = await setUp();
  const poisoned = { events: [anEvent({ data: '{"broken":' })] };
  const requests = Array.from({ length: 40 }, (_, i) =>
    i === 7 || i === 23 ? poisoned : i % 3 === 0 ? keyed(`k${i}`) : { events: [anEvent()] },
  );
  const answers = await Promise.allSettled(requests.map((request) => publish(request)));
  const failed = answers.flatMap((answer, index) => (answer.status === 'rejected' ? [index] : []));
  expect(failed).toEqual([7, 23]);
  expect(
    answers.every((each) => each.status === 'rejected' || each.value.status === 'published'),
  ).toBe(true);
  expect(await eventCount(db, topic.id)).toBe(38);
});

test('the buffer is bounded in events and in bytes, and empties', async () => {
  const small = await setUp({ limits: { bufferEventsMax: 10, bufferBytesMax: 10_000 } });
  const byEvents = await Promise.all(
    Array.from({ length: 15 }, () => small.publish({ events: [anEvent()] })),
  );
  expect(byEvents.map((answer) => answer.status)).toEqual([
    ...Array.from({ length: 10 }, () => 'published'),
    ...Array.from({ length: 5 }, () => 'buffer_full'),
  ]);
  const byBytes = await Promise.all(
    [4000, 6000, 1].map((bytes) => small.publish({ events: [anEvent()] }, bytes)),
  );
  expect(byBytes.map((answer) => answer.status)).toEqual(['published', 'published', 'buffer_full']);
  const alone = await small.publish({ events: [anEvent()] }, 50_000);
  expect(alone.status).toBe('published');
});

test('requests are stored whole, in batches of at most 1,000 events', async () => {
  const { db, topic, subscription, publish, woken } = await setUp();
  const of = (n: number): PublishRequest => ({
    events: Array.from({ length: n }, () => anEvent()),
  });
  const answers = await Promise.all([
    publish(of(600)),
    publish(of(600)),
    publish(of(400)),
    publish(of(1000)),
  ]);
  const sizes = answers.map((answer) =>
    answer.status === 'published' ? answer.results.length : 0,
  );
  expect(sizes).toEqual([600, 600, 400, 1000]);
  expect(await eventCount(db, topic.id)).toBe(2600);
  const publishes = new Set((await queueRows(db, subscription)).map((row) => row.publish_id));
  expect(publishes.size).toBe(3);
  expect(new Set(woken)).toEqual(new Set([subscription]));
});

test(
  '10,000 singles from 64 loops take at most 0.1 statements an event',
  { timeout: 60_000 },
  async () => {
    const { db, statements } = counted(database.db);
    const { topic, publish } = await setUp({ db });
    const before = statements();
    let left = 10_000;
    const loop = async (): Promise<void> => {
      while (left-- > 0) expect((await publish({ events: [anEvent()] })).status).toBe('published');
    };
    const startedAt = performance.now();
    await Promise.all(Array.from({ length: 64 }, loop));
    const seconds = (performance.now() - startedAt) / 1000;
    const used = statements() - before;
    console.log(`${used} statements, ${Math.round(10_000 / seconds)} events/s`);
    expect(await eventCount(database.db, topic.id)).toBe(10_000);
    expect(used).toBeLessThanOrEqual(1000);
  },
);

test('a topic that was deleted is told to all; a database that is away too', async () => {
  const { topic, publish, db } = await setUp();
  await db.updateTable('topic').set({ state: 'deleted' }).where('id', '=', topic.id).execute();
  expect((await publish({ events: [anEvent()] })).status).toBe('topic_not_found');
  const url = 'postgres://broker@127.0.0.1:1/none';
  await using nowhere = createDatabase({
    url,
    applicationName: 'broker-test',
    poolMax: 1,
    statementTimeoutMs: 1000,
  });
  const away = await setUp({ db: nowhere.db });
  const answers = await Promise.allSettled([
    away.publish({ events: [anEvent()] }),
    away.publish(keyed('x')),
  ]);
  expect(answers.map((each) => each.status === 'fulfilled' && each.value.status)).toEqual([
    'unavailable',
    'unavailable',
  ]);
});

test('drain sends what is buffered, and goes on to take what comes; at the deadline the rest is refused', async () => {
  const first = await setUp();
  const answers = Promise.all(
    Array.from({ length: 20 }, () => first.publish({ events: [anEvent()] })),
  );
  await first.publisher.drain(AbortSignal.timeout(10_000));
  expect((await answers).every((answer) => answer.status === 'published')).toBe(true);
  expect((await first.publish({ events: [anEvent()] })).status).toBe('published');

  const late = await setUp();
  const unsent = Promise.all(
    Array.from({ length: 3 }, () => late.publish({ events: [anEvent()] })),
  );
  await late.publisher.drain(AbortSignal.abort());
  expect((await unsent).map((answer) => answer.status)).toEqual(['closed', 'closed', 'closed']);
  expect((await late.publish({ events: [anEvent()] })).status).toBe('closed');
  expect(await eventCount(late.db, late.topic.id)).toBe(0);
});
