import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectDirect, type DirectConnection } from '#db/direct-connection.ts';
import { faultOf } from '#db/errors.ts';
import { startTcpProxy, type TcpProxy } from '#test/support/tcp-proxy.ts';
import { openVerbDatabase, type VerbDatabase } from '#test/support/verbs.ts';

let database: VerbDatabase;
let proxy: TcpProxy;

beforeAll(async () => {
  database = await openVerbDatabase();
  proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
});
afterAll(async () => {
  await proxy[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

async function connect(statementTimeoutMs = 5000): Promise<DirectConnection> {
  const url = proxy.through(database.url);
  return connectDirect({ url, applicationName: 'direct', statementTimeoutMs });
}

test('a session keeps what belongs to it, and the server looks after the line as well', async () => {
  const connection = await connect();
  await connection.query('select pg_advisory_lock(17)');
  const [locks] = await connection.query<{ held: number }>(
    `select count(*)::int as held from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()`,
  );
  expect(locks).toEqual({ held: 1 });
  const [setting] = await connection.query<{ count: string; timeout: string }>(
    `select current_setting('tcp_keepalives_count') as count, current_setting('tcp_user_timeout') as timeout`,
  );
  expect(setting).toEqual({ count: '3', timeout: '4000' });
  await connection.end();
  expect(connection.lost.aborted).toBe(true);
});

test('an error of the server is one, and the connection goes on', async () => {
  const connection = await connect();
  await expect(connection.query('select 1 / 0')).rejects.toThrow('division by zero');
  expect(await connection.query('select 1 as one')).toEqual([{ one: 1 }]);
  await connection.end();
});

test('a line that is cut is known at once, in the middle of a statement too', async () => {
  const connection = await connect();
  const asleep = connection.query('select pg_sleep(30)').catch(faultOf);
  const lost = once(connection.lost, 'abort');
  proxy.cut();
  await lost;
  expect(await asleep).toBe('outcome_unknown');
  expect(await connection.query('select 1').catch(faultOf)).toBe('outcome_unknown');
  await connection.end();
});

test('a line that fell silent is given up after twice the statement timeout', async () => {
  const connection = await connect(100);
  proxy.blackhole();
  expect(await connection.query('select 1').catch(faultOf)).toBe('outcome_unknown');
  connection.destroy();
  expect(connection.lost.aborted).toBe(true);
  proxy.restore();
});

test('nobody there is said to be unavailable', async () => {
  proxy.refuse();
  expect(await connect().catch(faultOf)).toBe('unavailable');
  proxy.restore();
});
