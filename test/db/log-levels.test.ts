import { sql } from 'kysely';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  findLogLevel,
  listLogLevels,
  logLevels,
  logLevelServices,
  setLogLevel,
} from '#db/log-levels.ts';
import { createWakeups } from '#db/wakeups.ts';
import { query } from '../support/database.ts';
import { untilListening } from '../support/until-listening.ts';
import { eventually } from '../support/eventually.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());
beforeEach(async () => void (await sql`delete from broker.log_level`.execute(database.db)));

test('a service follows what is set for it, the others what is set for all', async () => {
  const { db } = database;
  expect(await findLogLevel(db, 'worker')).toBeUndefined();
  await setLogLevel(db, '*', { level: 'warn', seconds: 600 });
  await setLogLevel(db, 'worker', { level: 'debug', seconds: 60 });
  const worker = await findLogLevel(db, 'worker');
  expect(worker?.level).toBe('debug');
  expect(worker?.remainingMs).toBeLessThanOrEqual(60_000);
  expect(worker?.remainingMs).toBeGreaterThan(0);
  expect((await findLogLevel(db, 'api'))?.level).toBe('warn');
  expect(await listLogLevels(db)).toMatchObject([
    { service: '*', level: 'warn', until: expect.any(String) as string },
    { service: 'worker', level: 'debug' },
  ]);
  await setLogLevel(db, 'worker', { level: 'debug', seconds: 0 });
  expect((await findLogLevel(db, 'worker'))?.level).toBe('warn');
});

test('what has ended is neither found nor shown, and goes with the next that is set', async () => {
  const { db } = database;
  await setLogLevel(db, 'api', { level: 'trace', seconds: 60 });
  await sql`update broker.log_level set until = clock_timestamp() - interval '1 second'`.execute(
    db,
  );
  expect(await findLogLevel(db, 'api')).toBeUndefined();
  expect(await listLogLevels(db)).toEqual([]);
  await setLogLevel(db, 'reaper', { level: 'warn', seconds: 60 });
  const { rows } = await sql<{ service: string }>`select service from broker.log_level`.execute(db);
  expect(rows).toEqual([{ service: 'reaper' }]);
});

test('everybody is told, with the commit', async () => {
  const { db, url } = database;
  await using wakeups = createWakeups({ db, directUrl: url, applicationName: 'listener' });
  await untilListening(wakeups);
  const heard: string[] = [];
  wakeups.onChange((kind, name) => void heard.push(`${kind} ${name}`));
  await setLogLevel(db, 'worker', { level: 'debug', seconds: 60 });
  await eventually(() => expect(heard).toEqual(['log_level worker']));
});

describe('with psql', () => {
  test('set_log_level has defaults, and says when it ends', async () => {
    const [row] = await query<{ lasts: string }>(
      database.url,
      `select extract(epoch from broker.set_log_level('debug') - clock_timestamp())::int as lasts`,
    );
    expect(row?.lasts).toBe(600);
    const [ended] = await query<{ until: null }>(
      database.url,
      `select broker.set_log_level('debug', p_for => interval '0') as until`,
    );
    expect(ended?.until).toBeNull();
    expect(await listLogLevels(database.db)).toEqual([]);
  });

  test.each([
    [`broker.set_log_level('loud')`, 'there is no log level loud'],
    [`broker.set_log_level('silent')`, 'there is no log level silent'],
    [`broker.set_log_level(null)`, 'there is no log level null'],
    [`broker.set_log_level('debug', 'workers')`, 'there is no service workers'],
    [`broker.set_log_level('debug', null)`, 'there is no service null'],
    [`broker.set_log_level('debug', 'api', interval '25 hours')`, '24 hours at most'],
    [`broker.set_log_level('debug', 'api', interval '-1 second')`, '24 hours at most'],
    [`broker.set_log_level('debug', 'api', null)`, '24 hours at most'],
  ])('%s is refused', async (call, message) => {
    await expect(query(database.url, `select ${call}`)).rejects.toThrow(message);
    expect(await listLogLevels(database.db)).toEqual([]);
  });

  test('the words are those that the API takes', async () => {
    for (const service of logLevelServices) {
      for (const level of logLevels) {
        await setLogLevel(database.db, service, { level, seconds: 60 });
      }
    }
    expect(await listLogLevels(database.db)).toHaveLength(logLevelServices.length);
  });
});
