// Goal: any sequence of verbs leaves every event in exactly one place, and every verb answers as the state table says.
// Method: fast-check makes sequences of calls; a model of a few lines says what each must answer and where each event is.
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { extend } from '#db/extend.ts';
import type { Lease } from '#db/lease.ts';
import { reap } from '#db/reap.ts';
import { settle, type Settlement, type SettleResult } from '#db/settle.ts';
import { takeOver } from '#db/take-over.ts';
import { aSubscription, aTerm, aTopic, aWorker, publishMany } from '../support/factory.ts';
import {
  claimSome,
  deadLetters,
  expireLeases,
  makeDue,
  openVerbDatabase,
  queueRows,
  type VerbDatabase,
} from '../support/verbs.ts';

const runs = process.env['LONG'] === '1' ? 1500 : 40;
const maxAttempts = 4;

let database: VerbDatabase;
let worker: string;
beforeAll(async () => {
  database = await openVerbDatabase();
  worker = await aWorker(database.db);
});
afterAll(() => database[Symbol.asyncDispose]());

interface Held {
  readonly event: string;
  readonly lease: Lease;
}

/** Where each event is, as the state table has it. */
class Model {
  readonly attempts = new Map<string, number>();
  readonly waiting = new Set<string>();
  readonly leased = new Map<string, string>();
  readonly acked = new Map<string, string>();
  readonly dead = new Set<string>();
  readonly deferrals = new Map<string, number>();
  /** Those that a worker has leased, and not a pull consumer. */
  readonly byWorker = new Set<string>();
  /** Every lease that was ever handed out. */
  readonly held: Held[] = [];

  publish(ids: readonly string[]): void {
    for (const id of ids) {
      this.attempts.set(id, 0);
      this.waiting.add(id);
    }
  }

  settle(event: string, lease: string, outcome: Settlement['outcome']): SettleResult {
    if (this.leased.get(event) !== lease) {
      return outcome === 'acked' && this.acked.get(event) === lease ? 'acked' : 'lease_lost';
    }
    this.leased.delete(event);
    if (outcome === 'acked') {
      this.acked.set(event, lease);
      return 'acked';
    }
    const attempts = this.attempts.get(event) ?? 0;
    const deferrals = this.deferrals.get(event) ?? 0;
    const isDeferred = outcome === 'deferred' && deferrals < 9;
    if (isDeferred) this.deferrals.set(event, deferrals + 1);
    const isNacked = outcome === 'nacked' || (outcome === 'deferred' && !isDeferred);
    if (outcome === 'rejected' || (isNacked && attempts >= maxAttempts)) {
      this.dead.add(event);
      return 'dead';
    }
    if (!isNacked) this.attempts.set(event, attempts - 1);
    this.waiting.add(event);
    return isNacked ? 'nacked' : outcome;
  }

  /** Leases that end without an answer: all of them, or those of the worker. */
  end(events: Iterable<string>): void {
    for (const event of events) {
      if (!this.leased.delete(event)) continue;
      if ((this.attempts.get(event) ?? 0) >= maxAttempts) this.dead.add(event);
      else this.waiting.add(event);
    }
  }
}

const leaseKey = (lease: Lease): string => `${lease.entry_id}.${lease.generation}.${lease.ordinal}`;

type Call =
  | { readonly verb: 'publish'; readonly count: number }
  | { readonly verb: 'claim'; readonly room: number; readonly isWorker: boolean }
  | {
      readonly verb: 'settle';
      readonly picks: readonly { readonly pick: number; readonly outcome: Settlement['outcome'] }[];
    }
  | { readonly verb: 'extend'; readonly pick: number }
  | { readonly verb: 'expire' }
  | { readonly verb: 'take_over' };

const outcome = fc.constantFrom<Settlement['outcome'][]>(
  'acked',
  'acked',
  'nacked',
  'released',
  'deferred',
  'rejected',
);
const calls = fc.array(
  fc.oneof(
    fc.record({ verb: fc.constant('publish' as const), count: fc.integer({ min: 1, max: 130 }) }),
    {
      weight: 3,
      arbitrary: fc.record({
        verb: fc.constant('claim' as const),
        room: fc.integer({ min: 1, max: 150 }),
        isWorker: fc.boolean(),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        verb: fc.constant('settle' as const),
        // from the end: mostly leases that are alive, sometimes any that ever was
        picks: fc.array(fc.record({ pick: fc.nat({ max: 300 }), outcome }), {
          minLength: 1,
          maxLength: 120,
        }),
      }),
    },
    fc.record({ verb: fc.constant('extend' as const), pick: fc.nat({ max: 300 }) }),
    fc.record({ verb: fc.constant('expire' as const) }),
    fc.record({ verb: fc.constant('take_over' as const) }),
  ),
  { minLength: 5, maxLength: 40 },
);

test('every sequence of verbs agrees with the state table', { timeout: 600_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(calls, async (sequence) => {
      const { db } = database;
      const topic = await aTopic(db);
      const subscription = await aSubscription(db, topic, {
        max_attempts: maxAttempts,
        minimum_backoff_ms: 0,
        maximum_backoff_ms: 0,
      });
      const model = new Model();
      for (const call of sequence) {
        await run(call, model, topic, subscription);
        await compare(model, subscription);
      }
    }),
    { numRuns: runs },
  );
});

async function run(call: Call, model: Model, topic: number, subscription: number): Promise<void> {
  const { db } = database;
  switch (call.verb) {
    case 'publish':
      model.publish(await publishMany(db, topic, call.count));
      break;
    case 'claim': {
      await makeDue(db, subscription);
      const { room, isWorker } = call;
      const leasedBy = isWorker ? { leasedBy: worker } : {};
      const events = await claimSome(db, topic, subscription, room, leasedBy);
      expect(events.length).toBeLessThanOrEqual(room);
      if (events.length === 0) expect(model.waiting.size).toBe(0);
      if (events.some((event) => event.isolated) && !isWorker) expect(events).toHaveLength(1);
      for (const event of events) {
        expect(model.waiting.delete(event.event_id)).toBe(true);
        expect(event.attempt).toBe((model.attempts.get(event.event_id) ?? 0) + 1);
        model.attempts.set(event.event_id, event.attempt);
        const lease = { ...event, topic_id: topic };
        model.leased.set(event.event_id, leaseKey(lease));
        model.byWorker[isWorker ? 'add' : 'delete'](event.event_id);
        model.held.push({ event: event.event_id, lease });
      }
      break;
    }
    case 'settle': {
      if (model.held.length === 0) break;
      const named = new Map<string, { held: Held; outcome: Settlement['outcome'] }>();
      for (const each of call.picks) {
        const held = model.held.at(-1 - (each.pick % model.held.length)) as Held;
        if (!named.has(leaseKey(held.lease)))
          named.set(leaseKey(held.lease), { held, outcome: each.outcome });
      }
      const list = [...named.values()];
      const results = await settle(
        db,
        topic,
        subscription,
        list.map((each) => ({ lease: each.held.lease, outcome: each.outcome })),
      );
      expect(results).toEqual(
        list.map((each) => model.settle(each.held.event, leaseKey(each.held.lease), each.outcome)),
      );
      break;
    }
    case 'extend': {
      const held = model.held.at(-1 - (call.pick % Math.max(1, model.held.length)));
      if (held === undefined) break;
      const [deadline] = await extend(db, topic, subscription, {
        leases: [held.lease],
        leaseMs: 60_000,
      });
      expect(deadline !== null).toBe(model.leased.get(held.event) === leaseKey(held.lease));
      break;
    }
    case 'expire':
      await expireLeases(db, subscription);
      await reap(db, topic, await aTerm(db), { limit: 10_000, since: '-infinity' });
      model.end([...model.leased.keys()]);
      break;
    case 'take_over':
      await takeOver(db, topic, await aTerm(db), { worker, limit: 10_000 });
      model.end(model.byWorker);
      break;
  }
}

async function compare(model: Model, subscription: number): Promise<void> {
  const rows = await queueRows(database.db, subscription);
  const idsOf = (leased: boolean): string[] =>
    rows
      .filter((row) => (row.lease_expires_at !== null) === leased)
      .flatMap((row) =>
        row.ordinals.map((ordinal) =>
          ((BigInt(row.publish_id) << 10n) + BigInt(ordinal)).toString(),
        ),
      );
  expect(idsOf(false).toSorted()).toEqual([...model.waiting].toSorted());
  expect(idsOf(true).toSorted()).toEqual([...model.leased.keys()].toSorted());
  const dead = await deadLetters(database.db, subscription);
  expect(dead.map((letter) => letter.event_id).toSorted()).toEqual([...model.dead].toSorted());
  for (const row of rows) {
    for (const ordinal of row.ordinals) {
      const id = ((BigInt(row.publish_id) << 10n) + BigInt(ordinal)).toString();
      expect(row.attempt).toBe(model.attempts.get(id));
      expect(row.attempt).toBeLessThanOrEqual(maxAttempts);
    }
  }
}
