import { getEventListeners } from 'node:events';
import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ClaimedEvent } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { publishBatch } from '#db/publish.ts';
import { createMetrics } from '#runtime/metrics.ts';
import { createReceiver, type ReceiveRequest } from '../../apps/api/receive/receiver.ts';
import { createSettler } from '../../apps/api/receive/settler.ts';
import { aSubscription, aTopic, anEvent, publishMany } from '../support/factory.ts';
import { openVerbDatabase, queueRows, settleAll, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

/** The wake-ups of one process, as far as a receiver sees them. */
function localWakeups() {
  const listeners = new Map<number, Set<(mark?: string) => void>>();
  const woken: number[] = [];
  const wake = (_topic: number, ids: readonly number[], mark?: string): void => {
    woken.push(...ids);
    for (const id of ids) for (const listener of listeners.get(id) ?? []) listener(mark);
  };
  const onWake = (id: number, listener: (mark?: string) => void) => {
    const known = listeners.get(id) ?? new Set();
    listeners.set(id, known.add(listener));
    return () => void known.delete(listener);
  };
  const listening = (id: number): number => listeners.get(id)?.size ?? 0;
  return { wakeups: { wake, onWake, listening: true }, woken, listeners: listening };
}

/** Passes statements on; tells how many claims there were, and calls `onClaim` before each. */
function watched(db: Database, onClaim: (count: number) => void = () => undefined) {
  let claims = 0;
  const plugged = db.withPlugin({
    transformQuery: (args) => {
      if (JSON.stringify(args.node).includes('broker.claim(')) onClaim(++claims);
      return args.node;
    },
    transformResult: async (args) => args.result,
  });
  return { db: plugged, claims: () => claims };
}

interface Options {
  readonly onClaim?: (count: number) => void;
  readonly waitingMax?: number;
  readonly overrides?: Parameters<typeof aSubscription>[2];
}

async function setUp(options: Options = {}) {
  const topicId = await aTopic(database.db);
  const id = await aSubscription(database.db, topicId, options.overrides);
  const subscription = { id, name: 'billing', topic_id: topicId };
  const metrics = createMetrics({ service: 'test' });
  const { wakeups, woken, listeners } = localWakeups();
  const { db, claims } = watched(database.db, options.onClaim);
  const settler = createSettler({ db, wakeups, metrics });
  const receiver = createReceiver({
    db,
    wakeups,
    settler,
    metrics,
    limits: { waitingMax: options.waitingMax ?? 1000, bytesMax: 8 << 20 },
    statementTimeoutMs: 5000,
    // nothing is found by it in the time of a test: what is, was found by a wake-up
    slowPollMs: { listening: 60_000, deaf: 60_000 },
  });
  const receive = (request: Partial<ReceiveRequest> = {}): Promise<ClaimedEvent[]> =>
    receiver.receive(subscription, {
      maxMessages: 10,
      waitMs: 20_000,
      leaseMs: 30_000,
      ...request,
    });
  const publish = async (count: number): Promise<string[]> => {
    const ids = await publishMany(database.db, topicId, count);
    wakeups.wake(topicId, [id]);
    return ids;
  };
  const wake = (mark?: string): void => wakeups.wake(topicId, [id], mark);
  return {
    db: database.db,
    topicId,
    subscription,
    receiver,
    receive,
    publish,
    woken,
    claims,
    listeners,
    wake,
  };
}

const idsOf = (events: readonly ClaimedEvent[]): string[] => events.map((event) => event.event_id);

test('a look without a wait is one claim', async () => {
  const { receive, publish, claims } = await setUp();
  expect(await receive({ waitMs: 0 })).toEqual([]);
  expect(claims()).toBe(1);
  const ids = await publish(3);
  expect(idsOf(await receive({ waitMs: 0 })).toSorted()).toEqual(ids.toSorted());
  expect(claims()).toBe(2);
});

test('a poll that waits is answered when something is published', async () => {
  const { receive, publish, listeners, subscription, claims } = await setUp();
  const waiting = receive();
  // the first look, and those 2, 4 and 8 ms later
  await expect.poll(claims).toBe(4);
  const ids = await publish(2);
  expect(idsOf(await waiting).toSorted()).toEqual(ids.toSorted());
  await expect.poll(() => listeners(subscription.id)).toBe(0);
});

test('polls of one subscription share claims, and each event goes to one of them', async () => {
  const { receive, publish, claims } = await setUp();
  const polls = Promise.all(Array.from({ length: 50 }, () => receive()));
  const ids = await publish(500);
  const answers = await polls;
  expect(answers.map((events) => events.length)).toEqual(Array.from({ length: 50 }, () => 10));
  expect(answers.flatMap(idsOf).toSorted()).toEqual(ids.toSorted());
  expect(claims()).toBeLessThan(10);
});

test('an isolated event goes to one poll alone, the others get the rest', async () => {
  const { db, receive, publish, subscription } = await setUp();
  await publish(1);
  await sql`update broker.queue set isolated = true where subscription_id = ${subscription.id}`.execute(
    db,
  );
  await publish(30);
  const answers = await Promise.all([receive({ waitMs: 0 }), receive({ waitMs: 0 }), receive()]);
  expect(answers.map((events) => [events.length, events[0]?.isolated])).toEqual([
    [1, true],
    [10, false],
    [10, false],
  ]);
});

test('a client that leaves takes its poll along: no listener, no timer, and others get what was claimed for it', async () => {
  const leaver = new AbortController();
  const { receive, publish, listeners, subscription } = await setUp({
    onClaim: (count) => {
      if (count === 2) leaver.abort();
    },
  });
  const ids = await publish(10);
  const all = await receive({ waitMs: 0 });
  expect(all).toHaveLength(10);
  const gone = receive({ signal: leaver.signal });
  const stays = receive();
  expect(await gone).toEqual([]);
  expect(getEventListeners(leaver.signal, 'abort')).toHaveLength(0);
  const more = await publish(10);
  expect(idsOf(await stays).toSorted()).toEqual(more.toSorted());
  expect(ids).toHaveLength(10);
  await expect.poll(() => listeners(subscription.id)).toBe(0);
});

test('what was claimed for a client that has left is released, and its attempt given back', async () => {
  const leaver = new AbortController();
  const { db, receive, publish, subscription, woken } = await setUp({
    onClaim: () => leaver.abort(),
  });
  await publish(10);
  woken.length = 0;
  expect(await receive({ signal: leaver.signal })).toEqual([]);
  await expect.poll(() => woken).toContain(subscription.id);
  const rows = await queueRows(db, subscription.id);
  expect(rows.map((row) => [row.event_count, row.attempt, row.lease_expires_at])).toEqual([
    [10, 0, null],
  ]);
});

test('the wait ends with nothing, and leaves nothing behind', async () => {
  const { receive, listeners, subscription } = await setUp();
  expect(await receive({ waitMs: 30 })).toEqual([]);
  await expect.poll(() => listeners(subscription.id)).toBe(0);
});

test('a paused subscription hands out nothing; what waited meanwhile is found when it goes on', async () => {
  const { db, receive, publish, subscription } = await setUp();
  const pause = (state: 'paused' | 'active') =>
    db
      .updateTable('subscription')
      .set({ state, updated_at: sql`clock_timestamp()` })
      .where('id', '=', subscription.id)
      .execute();
  await pause('paused');
  const ids = await publish(5);
  expect(await receive({ waitMs: 20 })).toEqual([]);
  await pause('active');
  expect(idsOf(await receive({ waitMs: 0 })).toSorted()).toEqual(ids.toSorted());
});

test('a wake-up with a mark makes the next claim start there', async () => {
  const { db, receive, publish, subscription, topicId, wake } = await setUp();
  // what is of now puts the mark to now
  await publish(3);
  await receive({ waitMs: 0 });
  await publishMany(db, topicId, 1);
  await sql`update broker.queue set available_at = clock_timestamp() - interval '1 hour'
    where subscription_id = ${subscription.id} and lease_expires_at is null`.execute(db);
  expect(await receive({ waitMs: 0 })).toEqual([]);
  const waiting = receive();
  wake(new Date(Date.now() - 2 * 3_600_000).toISOString());
  expect(await waiting).toHaveLength(1);
});

test('more polls than may wait are refused', async () => {
  const { receive, receiver } = await setUp({ waitingMax: 2 });
  const waiting = [receive(), receive()];
  await expect(receive()).rejects.toMatchObject({ code: 'receive_waiting_full' });
  await receiver.drain();
  expect(await Promise.all(waiting)).toEqual([[], []]);
});

test('drain answers the polls that wait, releases what a claim still brings, and hands out nothing afterwards', async () => {
  const begun = Promise.withResolvers<void>();
  const { db, receive, receiver, publish, subscription } = await setUp({
    onClaim: () => begun.resolve(),
  });
  await publish(4);
  const polls = [receive(), receive()];
  await begun.promise;
  await receiver.drain();
  expect(await Promise.all(polls)).toEqual([[], []]);
  const rows = await queueRows(db, subscription.id);
  expect(rows.map((row) => [row.event_count, row.attempt, row.lease_expires_at])).toEqual([
    [4, 0, null],
  ]);
  expect(await receive({ waitMs: 0 })).toEqual([]);
});

test('polls with other lease times have claims of their own', async () => {
  const { receive, publish, db, topicId } = await setUp();
  const polls = [receive({ leaseMs: 10_000 }), receive({ leaseMs: 90_000 })];
  await publish(20);
  const [short, long] = await Promise.all(polls);
  const left = (events: ClaimedEvent[] = []) =>
    Date.parse(events[0]!.lease_expires_at) - Date.parse(events[0]!.published_at);
  expect(left(long) - left(short)).toBeGreaterThan(60_000);
  await settleAll(db, topicId, [...(short ?? []), ...(long ?? [])], { outcome: 'acked' });
});

test('an error of the claim is told to all polls that share it', async () => {
  const { receive, db, topicId } = await setUp();
  await publishBatch(db, topicId, [{ events: [anEvent()] }]);
  const polls = [receive({ leaseMs: Number.NaN }), receive({ leaseMs: Number.NaN })];
  const answers = await Promise.allSettled(polls);
  expect(answers.map((answer) => answer.status)).toEqual(['rejected', 'rejected']);
});
