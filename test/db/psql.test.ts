// What an operator has in psql: every view and function, called as it is called there.
import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { countDeadLetters } from '#db/backlog.ts';
import type { Database } from '#db/client.ts';
import { findJob } from '#db/jobs.ts';
import { registerProcess } from '#db/processes.ts';
import { settle } from '#db/settle.ts';
import { findSubscription } from '#db/subscriptions.ts';
import { createWakeups } from '#db/wakeups.ts';
import { eventually } from '../support/eventually.ts';
import { aSubscription, aTerm, aTopic, publishMany } from '../support/factory.ts';
import { claimSome, openVerbDatabase, settleAll, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
let db: Database;
let psql: pg.Client;
let count = 0;

beforeAll(async () => {
  database = await openVerbDatabase();
  db = database.db;
  psql = new pg.Client({ connectionString: database.url });
  await psql.connect();
});
afterAll(async () => {
  await psql.end();
  await database[Symbol.asyncDispose]();
});

async function aReader(overrides: Parameters<typeof aSubscription>[2] = {}) {
  const topic = `orders-${++count}`;
  const name = `billing-${count}`;
  const topicId = await aTopic(db, { name: topic });
  const subscriptionId = await aSubscription(db, topicId, { name, ...overrides });
  return { topic, topicId, name, subscriptionId };
}

async function rowsOf(view: string, subscription: string): Promise<Record<string, unknown>[]> {
  const { rows } = await psql.query(
    `select * from broker.${view} where subscription = '${subscription}'`,
  );
  return rows as Record<string, unknown>[];
}

/** Also past the rule that one sample is followed by a pause of ten times its duration. */
async function sample(): Promise<void> {
  await sql`update broker.backlog_sampling set sampled_at = '-infinity'`.execute(db);
  await sql`select broker.sample_backlog()`.execute(db);
  await countDeadLetters(db);
}

test('every view and function says what it is', async () => {
  const { rows } = await psql.query<{ name: string; comment: string | null }>(`
    select c.relname as name, obj_description(c.oid, 'pg_class') as comment from pg_class c
     where c.relnamespace = 'broker'::regnamespace and c.relname in ('backlog', 'in_flight', 'dead_letters', 'workers', 'oldest_waiting')
    union all
    select p.proname || '/' || p.pronargs, obj_description(p.oid, 'pg_proc') from pg_proc p
     where p.oid in ('broker.pause(text)'::regprocedure, 'broker.resume(text)'::regprocedure, 'broker.redrive(text, int)'::regprocedure)`);
  expect(rows.map(({ name }) => name).toSorted()).toEqual(
    'backlog dead_letters in_flight oldest_waiting pause/1 redrive/2 resume/1 workers'.split(' '),
  );
  for (const { name, comment } of rows) expect([name, comment]).toEqual([name, expect.anything()]);
  // what its name says needs no words
  const { rows: columns } = await psql.query<{ name: string }>(`
    select c.relname || '.' || a.attname as name from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
     where c.relnamespace = 'broker'::regnamespace and c.relname in ('backlog', 'in_flight', 'dead_letters', 'workers', 'oldest_waiting')
       and col_description(c.oid, a.attnum) is null
       and a.attname not in ('topic', 'subscription', 'type', 'subject', 'data', 'died_at', 'instance', 'version', 'host', 'pid', 'started_at')`);
  expect(columns).toEqual([]);
});

describe('broker.backlog', () => {
  test('shows what each subscription has to do, by the last sample', async () => {
    const { topic, topicId, name, subscriptionId } = await aReader();
    expect(await rowsOf('backlog', name)).toMatchObject([
      { topic, subscription: name, state: 'active', waiting_events: null, sampled_at: null },
    ]);
    await publishMany(db, topicId, 7);
    const leased = await claimSome(db, topicId, subscriptionId, 3);
    await settleAll(db, topicId, leased.slice(0, 1), { outcome: 'rejected' });
    await sql`update broker.queue set available_at = clock_timestamp() - interval '1 minute'
      where subscription_id = ${subscriptionId} and lease_expires_at is null`.execute(db);
    await sample();
    const [row] = await rowsOf('backlog', name);
    expect(row).toMatchObject({
      type: 'pull',
      waiting_events: '4',
      leased_events: '2',
      dead_letters: '1',
    });
    expect(row).toMatchObject({ oldest_waiting_age: { minutes: expect.any(Number) as number } });
  });

  test('has no age where nothing that waits is due, and no row of what is deleted', async () => {
    const { topicId, name, subscriptionId } = await aReader();
    await publishMany(db, topicId, 1, { delay_ms: 60_000 });
    await sample();
    expect(await rowsOf('backlog', name)).toMatchObject([
      { waiting_events: '1', oldest_waiting_at: null, oldest_waiting_age: null },
    ]);
    await sql`update broker.subscription set state = 'deleted' where id = ${subscriptionId}`.execute(
      db,
    );
    expect(await rowsOf('backlog', name)).toEqual([]);
  });
});

test('broker.in_flight shows what is leased, and by whom', async () => {
  const { topic, topicId, name, subscriptionId } = await aReader();
  const ids = await publishMany(db, topicId, 5);
  expect(await rowsOf('in_flight', name)).toEqual([]);
  const [first] = await claimSome(db, topicId, subscriptionId, 3);
  await sql`update broker.queue set leased_by = 'worker-1' where id = ${first!.entry_id}::bigint`.execute(
    db,
  );
  expect(await rowsOf('in_flight', name)).toEqual([
    {
      topic,
      subscription: name,
      events: 3,
      attempt: 1,
      generation: 1,
      leased_by: 'worker-1',
      lease_expires_at: new Date(first!.lease_expires_at),
      first_event_id: ids[0],
    },
  ]);
});

test('broker.dead_letters shows what was given up, with its data', async () => {
  const { topic, topicId, name, subscriptionId } = await aReader();
  const data = '{"total": 12.50}';
  const [id] = await publishMany(db, topicId, 1, { data, subject: 'o-17' });
  const [event] = await claimSome(db, topicId, subscriptionId, 1);
  const answer = { status: 422, durationMs: 5, response: null };
  await settle(db, topicId, subscriptionId, [
    { lease: { ...event!, topic_id: topicId }, outcome: 'rejected', error: 'HTTP 422', answer },
  ]);
  expect(await rowsOf('dead_letters', name)).toMatchObject([
    {
      topic,
      subscription: name,
      event_id: id,
      reason: 'rejected',
      last_status: 422,
      last_error: 'HTTP 422',
      attempts: 1,
      type: 'order.created',
      subject: 'o-17',
      data: { total: 12.5 },
    },
  ]);
  expect(
    (await psql.query(`select data::text from broker.dead_letters where event_id = ${id}`)).rows,
  ).toEqual([{ data }]);
});

test('broker.workers shows who lives, who fell silent, who is gone, and who leads', async () => {
  const process = { version: '1', host: 'h', pid: 1 };
  for (const [instance, service] of [
    ['api-1', 'api'],
    ['reaper-1', 'reaper'],
    ['reaper-2', 'reaper'],
    ['worker-1', 'worker'],
  ] as const) {
    await registerProcess(db, { ...process, instance, service });
  }
  await sql`update broker.worker set heartbeat_at = clock_timestamp() - interval '11 s' where instance = 'reaper-2'`.execute(
    db,
  );
  await sql`update broker.worker set gone_at = clock_timestamp() where instance = 'worker-1'`.execute(
    db,
  );
  await sql`update broker.leader set holder = 'reaper-1'`.execute(db);
  const { rows } = await psql.query(
    'select instance, service, state, leader, heartbeat_age from broker.workers',
  );
  expect(rows).toMatchObject([
    { instance: 'api-1', service: 'api', state: 'alive', leader: false },
    { instance: 'reaper-1', service: 'reaper', state: 'alive', leader: true },
    { instance: 'reaper-2', service: 'reaper', state: 'silent', leader: false },
    { instance: 'worker-1', service: 'worker', state: 'gone', leader: false },
  ]);
  expect(rows[2].heartbeat_age.seconds).toBeGreaterThanOrEqual(11);
});

describe('broker.oldest_waiting', () => {
  test('shows the event that is due for longest, whatever the state of the subscription', async () => {
    const { topic, topicId, name, subscriptionId } = await aReader({ state: 'paused' });
    await publishMany(db, topicId, 1, { delay_ms: 60_000 });
    expect(await rowsOf('oldest_waiting', name)).toEqual([]);
    const [first] = await publishMany(db, topicId, 2);
    await publishMany(db, topicId, 2);
    await sql`update broker.queue set available_at = '2025-06-01T10:00:00Z', attempt = 2
      where subscription_id = ${subscriptionId} and publish_id = ${first}::bigint >> 10`.execute(
      db,
    );
    expect(await rowsOf('oldest_waiting', name)).toMatchObject([
      {
        topic,
        event_id: first,
        available_at: new Date('2025-06-01T10:00:00Z'),
        attempt: 2,
      },
    ]);
  });

  test('is one probe of an index per subscription, also where much waits that is not due', async () => {
    const { topicId } = await aReader();
    await publishMany(db, topicId, 1, { delay_ms: 3_600_000 });
    await sql`insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at, retention_class)
      select topic_id, publish_id, subscription_id, '{0}', 1, 10, available_at, retention_class from broker.queue, generate_series(1, 20000)
       where topic_id = ${topicId}`.execute(db);
    await sql`analyze broker.queue`.execute(db);
    const { rows } = await psql.query<{ 'QUERY PLAN': string }>(
      'explain (analyze, buffers, timing off, summary off) select * from broker.oldest_waiting',
    );
    const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
    expect(plan).toMatch(/Index Scan using queue_claim_idx/);
    expect(plan).not.toMatch(/Seq Scan on queue/);
    const buffers = Number(/Buffers: shared hit=(\d+)/.exec(plan)?.[1]);
    expect(buffers, plan).toBeLessThan(300);
  });
});

describe('broker.pause and broker.resume', () => {
  const call = async (text: string): Promise<unknown> => (await psql.query(text)).rows;

  test('return the new state; each is repeatable', async () => {
    const { name } = await aReader();
    for (const [verb, state] of [
      ['pause', 'paused'],
      ['pause', 'paused'],
      ['resume', 'active'],
      ['resume', 'active'],
    ]) {
      expect(await call(`select broker.${verb}('${name}')`)).toEqual([{ [verb!]: state }]);
      expect(await findSubscription(db, name)).toMatchObject({ state });
    }
  });

  test('one that is disabled stays so until it is resumed, and then has no reason any more', async () => {
    const { name } = await aReader();
    await psql.query(
      `update broker.subscription set state = 'disabled', disabled_reason = 'gone' where name = '${name}'`,
    );
    expect(await call(`select broker.pause('${name}')`)).toEqual([{ pause: 'disabled' }]);
    expect(await findSubscription(db, name)).toMatchObject({ disabled_reason: 'gone' });
    expect(await call(`select broker.resume('${name}')`)).toEqual([{ resume: 'active' }]);
    expect(await findSubscription(db, name)).toMatchObject({ disabled_reason: null });
  });

  test('tell every process; a resume wakes claimers from the head', async () => {
    const { name, subscriptionId } = await aReader();
    await using wakeups = createWakeups({ db, directUrl: database.url, applicationName: 'test' });
    await eventually(() => expect(wakeups.listening).toBe(true));
    const heard: string[] = [];
    wakeups.onChange((kind, changed) => heard.push(`${kind} ${changed}`));
    wakeups.onWake(subscriptionId, (mark) => heard.push(`wake ${mark}`));
    await psql.query(`select broker.pause('${name}')`);
    await psql.query(`select broker.pause('${name}')`);
    await psql.query(`select broker.resume('${name}')`);
    await eventually(() => expect(heard).toContain('wake -infinity'));
    expect(heard).toEqual([`subscription ${name}`, `subscription ${name}`, 'wake -infinity']);
  });

  test.each(['pause', 'resume', 'redrive'])(
    '%s of an unknown name is an error with a hint',
    async (verb) => {
      await expect(psql.query(`select broker.${verb}('nowhere')`)).rejects.toMatchObject({
        message: 'there is no subscription nowhere',
        hint: expect.stringContaining('broker.backlog'),
      });
      const { name, subscriptionId } = await aReader();
      await sql`update broker.subscription set state = 'deleted' where id = ${subscriptionId}`.execute(
        db,
      );
      await expect(psql.query(`select broker.${verb}('${name}')`)).rejects.toThrow(
        /no subscription/,
      );
    },
  );
});

describe('broker.redrive', () => {
  async function withDeadLetters(events: number) {
    const reader = await aReader();
    await publishMany(db, reader.topicId, events);
    const leased = await claimSome(db, reader.topicId, reader.subscriptionId, events);
    await settleAll(db, reader.topicId, leased, { outcome: 'rejected' });
    return reader;
  }

  test('makes the job that the API makes', async () => {
    const { name, topicId } = await withDeadLetters(3);
    const { rows } = await psql.query(`select broker.redrive('${name}')`);
    const jobId = rows[0].redrive as string;
    expect(await findJob(db, jobId)).toMatchObject({
      state: 'waiting',
      subscription: name,
      total: 3,
      rate_per_second: null,
    });
    await expect(psql.query(`select broker.redrive('${name}')`)).rejects.toMatchObject({
      message: `job ${jobId} is redriving ${name} already`,
      hint: expect.stringContaining('broker.job'),
    });
    const term = await aTerm(db);
    // the duty of that name is another function
    const done = await psql.query(
      `select redriven, finished from broker.redrive(${topicId}, ${term}, ${jobId}, 100)`,
    );
    expect(done.rows).toEqual([{ redriven: 3, finished: true }]);
    expect(await rowsOf('dead_letters', name)).toEqual([]);
  });

  test('takes a rate, and says what is no rate', async () => {
    const { name } = await withDeadLetters(1);
    for (const rate of [0, -1, 100_001]) {
      await expect(psql.query(`select broker.redrive('${name}', ${rate})`)).rejects.toThrow(
        `a rate is 1 to 100000 events a second, not ${rate}`,
      );
    }
    const { rows } = await psql.query(`select broker.redrive('${name}', 50)`);
    expect(await findJob(db, rows[0].redrive as string)).toMatchObject({ rate_per_second: 50 });
  });
});
