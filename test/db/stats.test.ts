import { sql } from 'kysely';
import { expect, test } from 'vitest';
import { sampleBacklog } from '#db/backlog.ts';
import { Candidate } from '#db/leader.ts';
import { knownMigrations } from '#db/migrate.ts';
import { registerProcess } from '#db/processes.ts';
import { backlogSamples, namesOf, readStatus } from '#db/stats.ts';
import { aSubscription, aTopic, publishMany } from '#test/support/factory.ts';
import { claimSome, openVerbDatabase } from '#test/support/verbs.ts';

test('the status of a broker that has just been made has nobody and nothing in it', async () => {
  await using database = await openVerbDatabase();
  const status = await readStatus(database.db);
  expect(status).toEqual({
    at: expect.stringMatching(/^\d{4}-\d\d-\d\dT/) as string,
    server_version: expect.stringMatching(/^1[5-8]/) as string,
    schema_version: (await knownMigrations()).at(-1),
    processes: [],
    leader: { holder: null, term: '0', elected_at: null, heartbeat_age_seconds: null },
    backlog: {
      waiting_events: 0,
      leased_events: 0,
      dead_letters: 0,
      oldest_waiting_seconds: null,
      sample_age_seconds: null,
    },
  });
});

test('the status shows processes, leader and the sums of the last sample', async () => {
  await using database = await openVerbDatabase();
  const { db } = database;
  const topicId = await aTopic(db, { name: 'orders' });
  const billing = await aSubscription(db, topicId, { name: 'billing' });
  await aSubscription(db, topicId, { name: 'mailer' });
  await publishMany(db, topicId, 30);
  await claimSome(db, topicId, billing, 10);
  await registerProcess(db, { instance: 'a', service: 'api', version: '1', host: 'h', pid: 1 });
  await sql`update broker.worker set heartbeat_at = clock_timestamp() - interval '7 seconds'`.execute(
    db,
  );
  await using candidate = new Candidate({
    directUrl: database.url,
    applicationName: 'candidate',
    holder: 'the-leader',
    statementTimeoutMs: 5000,
  });
  const look = await candidate.look();
  expect(await sampleBacklog(db)).toBe(true);
  const status = await readStatus(db);
  expect(status.processes).toMatchObject([
    { instance: 'a', service: 'api', pid: 1, state: 'alive' },
  ]);
  expect(status.processes[0]!.heartbeat_age_seconds).toBeGreaterThanOrEqual(7);
  expect(status.processes[0]!.heartbeat_age_seconds).toBeLessThan(30);
  expect(status.leader).toMatchObject({ holder: 'the-leader', term: '1' });
  expect(status.leader.heartbeat_age_seconds).toBeLessThan(10);
  expect(status.backlog).toMatchObject({ waiting_events: 50, leased_events: 10, dead_letters: 0 });
  expect(status.backlog.oldest_waiting_seconds).toBeGreaterThan(0);
  expect(status.backlog.sample_age_seconds).toBeGreaterThan(0);

  const samples = await backlogSamples(db);
  expect(samples.toSorted((a, b) => a.subscription.localeCompare(b.subscription))).toMatchObject([
    { topic: 'orders', subscription: 'billing', waiting_events: 20, leased_events: 10 },
    { topic: 'orders', subscription: 'mailer', waiting_events: 30, leased_events: 0 },
  ]);
  expect(await namesOf(db, 'topic', [topicId, 999_999])).toEqual(new Map([[topicId, 'orders']]));
  expect(await namesOf(db, 'subscription', [])).toEqual(new Map());
  if (look.status === 'leads') await look.leadership.resign();
});
