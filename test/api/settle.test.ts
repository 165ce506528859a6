import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import type { Lease } from '#db/lease.ts';
import type { Settlement } from '#db/settle.ts';
import { createMetrics } from '#runtime/metrics.ts';
import { createSettler } from '../../apps/api/receive/settler.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import { claimSome, openVerbDatabase, queueRows, type VerbDatabase } from '../support/verbs.ts';

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

async function setUp(events: number) {
  const topicId = await aTopic(database.db);
  const id = await aSubscription(database.db, topicId);
  await publishMany(database.db, topicId, events);
  const claimed = await claimSome(database.db, topicId, id, events);
  const leases = claimed.map((event): Lease => ({ ...event, topic_id: topicId }));
  const woken: number[] = [];
  const { db, statements } = counted(database.db);
  const settler = createSettler({
    db,
    metrics: createMetrics({ service: 'test' }),
    wakeups: { wake: (_topic, ids) => void woken.push(...ids) },
  });
  const subscription = { id, name: 'billing', topic_id: topicId };
  const settle = (settlements: readonly Settlement[]) => settler.settle(subscription, settlements);
  return { db: database.db, subscription, leases, settler, settle, statements, woken };
}

test('acks of many requests travel in few calls, and each request gets its own answers', async () => {
  const { db, subscription, leases, settle, statements } = await setUp(400);
  const requests = leases.map((lease) => settle([{ lease, outcome: 'acked' }]));
  requests.push(settle([{ lease: { ...leases[0]!, generation: 9 }, outcome: 'acked' }]));
  const answers = await Promise.all(requests);
  expect(answers.slice(0, 400)).toEqual(leases.map(() => ['acked']));
  expect(answers[400]).toEqual(['lease_lost']);
  expect(statements()).toBeLessThan(5);
  expect(await queueRows(db, subscription.id)).toEqual([]);
});

test('what is wrong with one request fails that one alone', async () => {
  const { leases, settle } = await setUp(3);
  const answers = await Promise.allSettled([
    settle([{ lease: leases[0]!, outcome: 'acked' }]),
    settle([{ lease: leases[1]!, outcome: 'nacked', error: 'no \u0000 in text' }]),
    settle([{ lease: leases[2]!, outcome: 'acked' }]),
  ]);
  expect(
    answers.map((answer) => (answer.status === 'fulfilled' ? answer.value : 'failed')),
  ).toEqual([['acked'], 'failed', ['acked']]);
});

test('what is due again at once wakes claimers; what is due later does not', async () => {
  const { leases, settle, settler, subscription, woken } = await setUp(4);
  await settle([{ lease: leases[0]!, outcome: 'acked' }]);
  await settle([{ lease: leases[1]!, outcome: 'nacked', delayMs: 5000 }]);
  expect(woken).toEqual([]);
  await settle([{ lease: leases[2]!, outcome: 'nacked', delayMs: 0 }]);
  expect(woken).toEqual([subscription.id]);
  await settle([{ lease: leases[3]!, outcome: 'released' }]);
  expect(woken).toEqual([subscription.id, subscription.id]);
  await settler.drain(AbortSignal.timeout(1000));
});

test('extend answers with the new deadlines, and with null for what is lost', async () => {
  const { leases, settler, subscription } = await setUp(2);
  const lost = { ...leases[1]!, generation: 5 };
  const [deadline, none] = await settler.extend(subscription, [leases[0]!, lost], 600_000);
  expect(Date.parse(deadline ?? '')).toBeGreaterThan(Date.now() + 300_000);
  expect(none).toBeNull();
});

test('a row that somebody holds refuses the requests about it and no others', async () => {
  const { leases, settle } = await setUp(250);
  const entries = [...new Set(leases.map((lease) => lease.entry_id))];
  const held = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const holder = database
    .another()
    .db.transaction()
    .execute(async (trx) => {
      await trx
        .selectFrom('queue')
        .select('id')
        .where('id', '=', entries[1]!)
        .forUpdate()
        .execute();
      held.resolve();
      await release.promise;
    });
  await held.promise;
  const answers = await Promise.allSettled(
    leases.map((lease) => settle([{ lease, outcome: 'acked' }])),
  );
  const refused = leases.filter((_, index) => answers[index]!.status === 'rejected');
  expect(new Set(refused.map((lease) => lease.entry_id))).toEqual(new Set([entries[1]]));
  expect(refused).toHaveLength(100);
  release.resolve();
  await holder;
  // to repeat all of it is safe
  const again = await Promise.all(leases.map((lease) => settle([{ lease, outcome: 'acked' }])));
  expect(again.flat()).toEqual(leases.map(() => 'acked'));
});
