import { sql } from 'kysely';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { createRedriveJob, findJob } from '#db/jobs.ts';
import { createMetrics } from '#runtime/metrics.ts';
import { aSubscription, aTerm, aTopic, publishMany } from '#test/support/factory.ts';
import { aPastPartition, publishInto } from '#test/support/past-partition.ts';
import { only, openReaperBench, type ReaperBench } from '#test/support/reaper.ts';
import { claimSome, expireLeases, queueRows, settleAll } from '#test/support/verbs.ts';
import { duties } from '../../apps/reaper/duties.ts';
import { runJobs } from '../../apps/reaper/run-jobs.ts';
import { eventually } from '../support/eventually.ts';

let bench: ReaperBench;
let db: Database;

beforeEach(async () => {
  bench = await openReaperBench();
  db = bench.db;
});
afterEach(async () => bench[Symbol.asyncDispose]());

describe('the duty', () => {
  test('sweep wakes subscriptions with something due of which no word came, also what became due later', async () => {
    const topicId = await aTopic(db);
    const subscriptionId = await aSubscription(db, topicId);
    const idle = await aSubscription(db, topicId, { filter: { exact: { type: 'none' } } });
    const heard: string[] = [];
    bench.wakeups.onWake(subscriptionId, (mark) => heard.push(`due ${mark}`));
    bench.wakeups.onWake(idle, () => heard.push('idle'));
    bench.start('one', only('sweep'));
    await eventually(async () => expect(await bench.term()).toBe(1));
    await publishMany(db, topicId, 1, { delay_ms: 200 });
    await eventually(() => expect(heard.length).toBeGreaterThan(2), { timeoutMs: 5000 });
    expect(new Set(heard)).toEqual(new Set(['due undefined']));
  });

  test('sweep_from_head tells how far back something is due', async () => {
    const topicId = await aTopic(db);
    const subscriptionId = await aSubscription(db, topicId);
    await publishMany(db, topicId, 1);
    await sql`update broker.queue set available_at = '2025-06-01T10:00:00.25Z'`.execute(db);
    const heard: (string | undefined)[] = [];
    bench.wakeups.onWake(subscriptionId, (mark) => heard.push(mark));
    bench.start('one', only('sweep_from_head'));
    await eventually(() => expect(heard).toContain('2025-06-01T10:00:00.25Z'));
  });

  test('reap takes back leases of several topics, more than one call takes, and wakes', async () => {
    const topics = await Promise.all([1, 2].map(async () => aTopic(db)));
    const subscriptions: number[] = [];
    for (const topicId of topics) {
      const subscriptionId = await aSubscription(db, topicId);
      subscriptions.push(subscriptionId);
      for (let publish = 0; publish < 3; publish += 1) {
        await publishMany(db, topicId, 100, { delay_ms: publish });
      }
      await sql`insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at, retention_class)
        select topic_id, publish_id, subscription_id, '{0}', 1, 10, available_at, retention_class from broker.queue, generate_series(1, 300)
         where subscription_id = ${subscriptionId} limit 300`.execute(db);
      await sql`update broker.queue set lease_expires_at = clock_timestamp(), generation = 1, attempt = 1`.execute(
        db,
      );
    }
    const woken = new Set<number>();
    for (const id of subscriptions) bench.wakeups.onWake(id, () => woken.add(id));
    const reaper = bench.start('one', only('reap'));
    await eventually(
      async () => {
        for (const id of subscriptions) {
          const rows = await queueRows(db, id);
          expect(rows).toHaveLength(303);
          expect(rows.filter((row) => row.lease_expires_at !== null)).toHaveLength(0);
        }
      },
      { timeoutMs: 10_000 },
    );
    expect(woken).toEqual(new Set(subscriptions));
    await eventually(async () =>
      expect(await reaper.metric('broker_leases_expired_total')).toMatch(/\} 600/),
    );
    // and one that runs out later, past the mark
    await claimSome(db, topics[0]!, subscriptions[0]!, 1);
    await expireLeases(db, subscriptions[0]!);
    await eventually(
      async () => {
        const rows = await queueRows(db, subscriptions[0]!);
        expect(rows.filter((row) => row.lease_expires_at !== null)).toHaveLength(0);
      },
      { timeoutMs: 10_000 },
    );
  });

  test('reap finds a lease that ran out long ago and was locked, or came late', async () => {
    const topicId = await aTopic(db);
    const subscriptionId = await aSubscription(db, topicId);
    await publishMany(db, topicId, 1);
    bench.start('one', only('reap'));
    await eventually(async () => expect(await bench.term()).toBe(1));
    await sql`update broker.queue set generation = 1, attempt = 1, lease_expires_at = clock_timestamp() - interval '8 seconds'`.execute(
      db,
    );
    await eventually(
      async () => {
        expect((await queueRows(db, subscriptionId))[0]!.lease_expires_at).toBeNull();
      },
      { timeoutMs: 10_000 },
    );
  });

  test('sample_backlog shows gauges by name, which vanish when another leads', async () => {
    const topicId = await aTopic(db, { name: 'orders' });
    await aSubscription(db, topicId, { name: 'billing' });
    await publishMany(db, topicId, 12);
    const reaper = bench.start('one', only('sample_backlog'));
    await eventually(async () =>
      expect(await reaper.metric('broker_waiting_events')).toMatch(
        /topic="orders",subscription="billing".*\} 12/,
      ),
    );
    await reaper.stop();
    expect(await reaper.metric('broker_waiting_events')).not.toMatch(/billing/);
  });

  test('ensure_partitions makes what is missing at once when the term begins', async () => {
    const topicId = await aTopic(db);
    await sql`update broker.topic set retention_class = 8760, retention_seconds = 31536000 where id = ${topicId}`.execute(
      db,
    );
    bench.start('one', { ensure_partitions: duties.ensure_partitions });
    await eventually(async () => {
      const { rows } = await sql`select from broker.partition where retention_class = 8760`.execute(
        db,
      );
      expect(rows).toHaveLength(3);
    });
  });

  test('retire_partitions drops what is over and counts what it ended', async () => {
    const topicId = await aTopic(db, { name: 'old', retention_seconds: 3600, retention_class: 1 });
    const subscriptionId = await aSubscription(db, topicId, { name: 'slow' });
    const pasts = [await aPastPartition(db, 300), await aPastPartition(db, 200)];
    for (const past of pasts) {
      await publishInto(db, past, { topicId, subscriptionIds: [subscriptionId], events: 4 });
    }
    const reaper = bench.start('one', only('retire_partitions'));
    await eventually(
      async () => {
        const { rows } = await sql<{
          left: number;
        }>`select count(*)::int as left from broker.partition
        where event_partition = any (${pasts.map((past) => past.event_partition)})`.execute(db);
        expect(rows[0]!.left).toBe(0);
      },
      { timeoutMs: 10_000 },
    );
    expect(await queueRows(db, subscriptionId)).toEqual([]);
    expect(await reaper.metric('broker_events_expired_total')).toMatch(
      /topic="old",subscription="slow".*\} 8/,
    );
  });

  test('run_jobs redrives several jobs side by side, and ends one that nobody can receive', async () => {
    const topicId = await aTopic(db);
    const subscriptions = [];
    const jobs: string[] = [];
    for (let index = 0; index < 3; index += 1) {
      const subscriptionId = await aSubscription(db, topicId, {
        filter: { exact: { type: `t${index}` } },
      });
      await publishMany(db, topicId, 250, { type: `t${index}` });
      const events = await claimSome(db, topicId, subscriptionId, 1000);
      await settleAll(db, topicId, events, { outcome: 'rejected' });
      const job = await createRedriveJob(db, topicId, subscriptionId);
      jobs.push(job.status === 'created' ? job.id : '');
      subscriptions.push(subscriptionId);
    }
    await sql`update broker.subscription set state = 'deleted' where id = ${subscriptions[2]!}`.execute(
      db,
    );
    const woken = new Set<number>();
    for (const id of subscriptions) bench.wakeups.onWake(id, () => woken.add(id));
    bench.start('one', only('run_jobs'));
    await eventually(
      async () => {
        const states = await Promise.all(jobs.map(async (id) => (await findJob(db, id))?.state));
        expect(states).toEqual(['succeeded', 'succeeded', 'failed']);
      },
      { timeoutMs: 10_000 },
    );
    expect(woken).toEqual(new Set(subscriptions.slice(0, 2)));
    for (const id of subscriptions.slice(0, 2)) {
      expect((await queueRows(db, id)).reduce((sum, row) => sum + row.event_count, 0)).toBe(250);
    }
  });

  test('run_jobs leaves a job that waits for its rate until the next run, and does the others', async () => {
    const topicId = await aTopic(db);
    const jobs: string[] = [];
    for (const rate of [1, undefined]) {
      const type = `rate-${rate}`;
      const subscriptionId = await aSubscription(db, topicId, { filter: { exact: { type } } });
      await publishMany(db, topicId, 250, { type });
      const events = await claimSome(db, topicId, subscriptionId, 1000);
      await settleAll(db, topicId, events, { outcome: 'rejected' });
      const job = await createRedriveJob(db, topicId, subscriptionId, rate);
      jobs.push(job.status === 'created' ? job.id : '');
    }
    const run = runJobs({
      db,
      wakeups: bench.wakeups,
      metrics: createMetrics({ service: 'reaper' }),
      term: await aTerm(db),
      signal: AbortSignal.timeout(30_000),
      lookBackMs: 10_000,
    });
    // 'again' would make the loop come back at once, and so spin
    expect(await run()).toBeUndefined();
    const [rated, free] = await Promise.all(jobs.map(async (id) => findJob(db, id)));
    expect(rated).toMatchObject({ state: 'running' });
    expect(rated?.done).toBeGreaterThanOrEqual(1);
    expect(rated?.done).toBeLessThan(20);
    expect(free).toMatchObject({ state: 'succeeded', done: 250 });
  });
});
