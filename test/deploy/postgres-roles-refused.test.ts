/**
 * Goal: what deploy/postgres/roles cannot use it refuses before it does anything, says what is wrong, and shows no part of a password.
 *
 * Method: secrets and variables that are wrong in one way each.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';

import { findPostgresBuilds, StackPostgres } from '#test/support/stack-postgres.ts';

const scripts = join(import.meta.dirname, '../../deploy/postgres');
const [anyBuild] = findPostgresBuilds();
describe.runIf(anyBuild)('it is refused, with words', () => {
  const url = 'postgres://broker_api_1:a-password-of-20-chars@postgres/broker?sslmode=verify-full';
  async function refused(secret: string | undefined, env: Record<string, string> = {}) {
    await using postgres = await StackPostgres.open(anyBuild!);
    await postgres.secret('database_url_api', secret);
    const run = postgres.run('roles', env);
    expect(await run.exited).toEqual({ code: 64, signal: null });
    // and no password with it, nor what could be one
    expect(run.output()).not.toMatch(/a-password-of|chars/);
    return run.output();
  }

  test.each([
    [undefined, 'the secret database_url_api is missing'],
    ['', 'the secret database_url_api is empty'],
    ['https://example.com', 'is not of the form postgres://'],
    [url.replace('api_1', 'worker_1'), `its user is not called broker_api_1 or broker_api_2`],
    [url.replace('api_1', 'api_1000'), 'its user is not called broker_api_1'],
    [url.replace('api_1', "api_1'; drop"), 'its user is not called broker_api_1'],
    [url.replace('-of-20-chars', ''), 'the password is shorter than 16 characters'],
    [url.replace('20', '%20'), 'the password has other characters'],
    [url.replace('20', "20'"), 'the password has other characters'],
    [url.replace('-chars', '-@of/chars'), 'what follows the host is not the name of a database'],
    [url.replace('/broker?', '/else?'), 'names the database else, another names broker'],
    [url.replace('/broker?', '/Else?'), 'is not the name of a database'],
    [url.replace('/broker?', '/?'), 'is not the name of a database'],
    [url.replace('/broker?', '/postgres?'), "the database postgres is PostgreSQL's own"],
    [url.replace('/broker?', `/${'b'.repeat(64)}?`), 'is longer than 63 characters'],
  ])('%s', async (secret, words) => {
    expect(await refused(secret)).toContain(words);
  });

  test.each([
    ['RETIRE_ROLES', 'yes', "RETIRE_ROLES is off, on, owner, api, worker or monitor, not 'yes'"],
    ['WAIT_SECONDS', 'long', "WAIT_SECONDS is not valid: 'long'"],
    ['SOCKET_DIR', 'localhost', 'SOCKET_DIR is not valid'],
    ['CONF_DIR', '/nowhere', 'there is no roles.sql in /nowhere'],
  ])('%s=%s', async (name, value, words) => {
    expect(await refused(url, { [name]: value })).toContain(words);
  });

  test.runIf(process.getuid?.() === 0)('another user than the one of the server', async () => {
    await using postgres = await StackPostgres.open(anyBuild!);
    await postgres.serve();
    const run = promisify(execFile)('/bin/sh', [join(scripts, 'roles')], { env: postgres.env() });
    await expect(run).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/run it as the user that runs PostgreSQL, not as \w+: .*Peer/),
    });
  });
});
