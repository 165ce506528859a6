/**
 * Goal: `migrate` may be started before the PostgreSQL of its stack and before its role is there, and waits for both.
 *
 * Method: the real process, and deploy/postgres/{start,roles} beside it, one after the other, each when the process has said that it
 * waits for that.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { expect, test } from 'vitest';

import { query } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { guardProcess } from '#test/support/process-guard.ts';
import { findPostgresBuilds, StackPostgres } from '#test/support/stack-postgres.ts';

const [build] = findPostgresBuilds();

function startMigrate(databaseUrl: string) {
  const child = spawn(process.execPath, ['apps/migrate/main.ts'], {
    cwd: join(import.meta.dirname, '../..'),
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env['PATH'], DATABASE_URL: databaseUrl },
  });
  if (child.pid === undefined) throw new Error('migrate cannot be run');
  const dismissGuard = guardProcess(child.pid);
  let output = '';
  const add = (chunk: Buffer): void => void (output += chunk.toString());
  child.stdout.on('data', add);
  child.stderr.on('data', add);
  const exited = once(child, 'close').then(() => {
    dismissGuard();
    return child.exitCode;
  });
  const until = async (words: string | RegExp): Promise<void> =>
    eventually(() => expect(output).toMatch(words), { timeoutMs: 30_000 });
  return { child, exited, until, output: () => output };
}

test.runIf(build)('migrate waits for the server, and then for its role', async () => {
  await using postgres = await StackPostgres.open(build!);
  const migrate = startMigrate(postgres.url('owner'));
  await migrate.until(/waiting for the database: .*ECONNREFUSED/);
  await postgres.serve();
  await migrate.until(/waiting for the database: pg_hba.conf rejects connection .*broker_owner_1/);
  await postgres.makeRoles();
  expect(await migrate.exited).toBe(0);
  expect(migrate.output()).toContain('the database is up to date');
  // info, and no secret with it
  expect(migrate.output()).not.toMatch(/"level":"(warn|error|fatal)"|password-of/);
  await query(postgres.url('api'), 'select from broker.event');
});

test.runIf(build)('told to stop while it waits, it ends at once', async () => {
  await using postgres = await StackPostgres.open(build!);
  const migrate = startMigrate(postgres.url('owner'));
  await migrate.until('waiting for the database');
  migrate.child.kill('SIGTERM');
  expect(await migrate.exited).toBe(0);
  expect(migrate.output()).not.toContain('cannot start');
});
