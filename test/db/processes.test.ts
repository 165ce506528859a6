import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import {
  forgetProcesses,
  heartbeatProcess,
  registerProcess,
  unregisterProcess,
} from '#db/processes.ts';
import { openVerbDatabase, type VerbDatabase } from '#test/support/verbs.ts';

let database: VerbDatabase;
let db: Database;

beforeAll(async () => {
  database = await openVerbDatabase();
  db = database.db;
});
afterAll(async () => database[Symbol.asyncDispose]());

function aProcess(instance: string) {
  return { instance, service: 'api', version: '1.2.3', host: 'here', pid: 17 };
}

async function find(instance: string) {
  return db.selectFrom('worker').selectAll().where('instance', '=', instance).executeTakeFirst();
}

test('a process is there from its start to its end, and a heartbeat changes its heartbeat alone', async () => {
  await registerProcess(db, aProcess('a'));
  const registered = await find('a');
  expect(registered).toMatchObject(aProcess('a'));
  await heartbeatProcess(db, aProcess('a'));
  const beaten = await find('a');
  expect(beaten).toEqual({ ...registered, heartbeat_at: expect.any(String) as string });
  expect(beaten!.heartbeat_at > registered!.heartbeat_at).toBe(true);
  await unregisterProcess(db, 'a');
  expect(await find('a')).toBeUndefined();
});

test('a start under the name of one that is gone replaces it', async () => {
  await registerProcess(db, aProcess('b'));
  const before = await find('b');
  await registerProcess(db, { ...aProcess('b'), version: '1.3.0', pid: 18 });
  const after = await find('b');
  expect(after).toMatchObject({ version: '1.3.0', pid: 18 });
  expect(after!.started_at > before!.started_at).toBe(true);
});

test('a process that was forgotten while it could not be heard is back with its next heartbeat', async () => {
  await registerProcess(db, aProcess('old'));
  await registerProcess(db, aProcess('young'));
  await sql`update broker.worker set heartbeat_at = clock_timestamp() - interval '61 minutes'
    where instance = 'old'`.execute(db);
  expect(await forgetProcesses(db)).toBe(1);
  expect(await find('old')).toBeUndefined();
  expect(await find('young')).toBeDefined();
  await heartbeatProcess(db, aProcess('old'));
  expect(await find('old')).toMatchObject(aProcess('old'));
});
