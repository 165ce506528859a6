// Goal: a transaction that somebody holds open does not slow claims, however much was delivered since.
// Method: a snapshot is held; entries of one event each are claimed and acked; at two points the buffers that a claim
// touches are counted, from the low-water mark and from the head. The index entries of what is gone cannot be removed.
import pg from 'pg';
import { expect, test } from 'vitest';
import { aSubscription, aTopic } from '../support/factory.ts';
import { claimSome, openVerbDatabase, settleAll } from '../support/verbs.ts';

const total = process.env['LONG'] === '1' ? 300_000 : 60_000;

/** Entries of one event, one a millisecond, all due. */
async function fill(client: pg.Client, topic: number, subscription: number): Promise<void> {
  await client.query(`with base as materialized (select broker.id_floor(clock_timestamp()) as id, clock_timestamp() as at)
    insert into broker.event (id, published_at, expires_at, topic_id, retention_class, type, data)
    select (base.id + i) << 10, base.at, base.at + interval '7 days', ${topic}, 168, 't', '{"a":1}'
      from base, generate_series(1, ${total}::int) i`);
  await client.query(`insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at, retention_class)
    select ${topic}, e.id >> 10, ${subscription}, '{0}', 1, 10, clock_timestamp() - interval '1 day' + e.n * interval '1 millisecond', 168
      from (select id, row_number() over (order by id) as n from broker.event where topic_id = ${topic}) e`);
}

test(
  `after ${total} entries are gone under a held snapshot, a claim costs what it cost after a sixth of them`,
  { timeout: 300_000 },
  async () => {
    await using database = await openVerbDatabase();
    const { db } = database;
    const topic = await aTopic(db);
    const subscription = await aSubscription(db, topic);
    // without our own time-outs, like somebody at a psql prompt
    const held = new pg.Client({ connectionString: database.url });
    await held.connect();
    await fill(held, topic, subscription);
    await held.query('begin isolation level repeatable read');
    await held.query('select count(*) from broker.queue');

    let mark: string | undefined;
    let gone = 0;
    const consume = async (until: number): Promise<void> => {
      while (gone < until) {
        const events = await claimSome(
          db,
          topic,
          subscription,
          Math.min(1000, until - gone),
          mark === undefined ? {} : { mark },
        );
        expect(events.length).toBeGreaterThan(0);
        await settleAll(db, topic, events, { outcome: 'acked' });
        gone += events.length;
        mark = new Date(Date.parse(events.at(-1)?.due_at ?? '') - 1000).toISOString();
      }
    };
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    const buffersOf = async (from: string): Promise<number> => {
      const { rows } = await client.query<{
        'QUERY PLAN': [{ Plan: Record<string, number> }];
      }>(`explain (analyze, buffers, timing off,
      format json) select * from broker.claim(${topic}, array[${subscription}], array[10], array[1000000],
      array['${from}'::timestamptz], 1, null)`);
      const plan = rows[0]?.['QUERY PLAN'][0].Plan ?? {};
      return (plan['Shared Hit Blocks'] ?? 0) + (plan['Shared Read Blocks'] ?? 0);
    };
    await buffersOf('infinity');

    await consume(total / 6);
    // the first look after so many settles also cleans the pages
    await buffersOf(mark ?? '');
    const early = { mark: await buffersOf(mark ?? ''), head: await buffersOf('-infinity') };
    await consume(total - 1000);
    await buffersOf(mark ?? '');
    const late = { mark: await buffersOf(mark ?? ''), head: await buffersOf('-infinity') };
    process.stdout.write(
      `buffers of a claim after ${total / 6} and ${total} entries: from the mark ${early.mark}, ${late.mark}; from the head ${early.head}, ${late.head}\n`,
    );
    expect(late.mark).toBeLessThanOrEqual(early.mark * 1.5);
    expect(late.head).toBeGreaterThan(early.head * 3);
    await held.end();
    await client.end();
  },
);
