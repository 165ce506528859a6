import { sql } from 'kysely';
import { expect, test } from 'vitest';
import { readBacklogExtremes } from '#db/backlog-extremes.ts';
import type { SubscriptionState } from '#db/schema.ts';
import { aSubscription, aTopic } from '#test/support/factory.ts';
import { openVerbDatabase } from '#test/support/verbs.ts';

interface Sample {
  readonly name: string;
  readonly waiting?: number;
  readonly dead?: number;
  readonly dueSeconds?: number;
  readonly state?: SubscriptionState;
  readonly isPush?: boolean;
  readonly counts?: boolean;
}

test('finds, of each kind, those with most of it, and how many there are', async () => {
  await using database = await openVerbDatabase();
  const { db } = database;
  const orders = await aTopic(db, { name: 'orders' });
  const stock = await aTopic(db, { name: 'stock' });
  await sql`update broker.topic set max_backlog = 100`.execute(db);
  async function sampled(topicId: number, sample: Sample): Promise<void> {
    const { name, waiting = 0, dead = 0, dueSeconds, state = 'active', isPush, counts } = sample;
    const id = await aSubscription(db, topicId, { name, state });
    if (isPush === true) {
      await sql`update broker.subscription set type = 'push', push_endpoint = 'https://a.example', push_mode = 'raw',
        push_headers = '{}', push_timeout_ms = 1000 where id = ${id}`.execute(db);
    }
    if (counts === false) {
      await sql`update broker.subscription set backpressure = false where id = ${id}`.execute(db);
    }
    await sql`insert into broker.backlog_sample values (${topicId}, ${id}, ${waiting}, 1, ${dead},
      clock_timestamp() - ${dueSeconds ?? null}::float8 * interval '1 second', clock_timestamp())`.execute(
      db,
    );
  }
  await sampled(orders, { name: 'fuller', waiting: 150 });
  await sampled(orders, { name: 'full', waiting: 120, dueSeconds: 400 });
  await sampled(orders, { name: 'passed-by', waiting: 900, counts: false });
  await sampled(stock, { name: 'paused', waiting: 200, state: 'paused', dueSeconds: 9000 });
  await sampled(stock, { name: 'disabled-and-empty', state: 'disabled' });
  await sampled(stock, { name: 'later', waiting: 3, dueSeconds: 7000, isPush: true });
  await sampled(stock, { name: 'pushed', waiting: 3, dueSeconds: 60, isPush: true, dead: 2 });
  await sampled(stock, { name: 'dying', dead: 30 });
  await sampled(stock, { name: 'removed', waiting: 999, dead: 99, state: 'deleted' });

  const options = { limit: 2, lateSeconds: 300, pushDueSeconds: 30 };
  const found = await readBacklogExtremes(db, options);
  const shown = Object.fromEntries(
    Object.entries(found).map(([kind, { total, first }]) => [
      kind,
      `${total}: ${first.map(({ subscription }) => subscription).join(', ')}`,
    ]),
  );
  expect(shown).toEqual({
    most_waiting: '8: passed-by, paused',
    full: '1: fuller',
    late: '2: later, full',
    push_due: '2: later, pushed',
    halted: '1: paused',
    dead: '2: dying, pushed',
  });
  expect(found.late.first[1]).toEqual({
    topic: 'orders',
    subscription: 'full',
    type: 'pull',
    state: 'active',
    waiting_events: 120,
    leased_events: 1,
    dead_letters: 0,
    oldest_waiting_seconds: expect.any(Number) as number,
    max_backlog: 100,
  });
});

test('of a broker in which there is nothing there is nothing', async () => {
  await using database = await openVerbDatabase();
  const options = { limit: 20, lateSeconds: 300, pushDueSeconds: 5 };
  const found = await readBacklogExtremes(database.db, options);
  expect(Object.values(found)).toEqual(Array.from({ length: 6 }, () => ({ total: 0, first: [] })));
});
