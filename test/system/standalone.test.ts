/*
 * Goal: `npm start` is all that a newcomer needs, and leaves nothing behind.
 * Method: the real command in a process group of its own, on data directories of its own; the lines that it prints are run
 * by bash; Ctrl-C is SIGINT to the group; processes are counted by the data directory in their command lines.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { freePort } from '#test/support/cluster.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { guardProcess } from '#test/support/process-guard.ts';

const run = promisify(execFile);
const top = join(import.meta.dirname, '../..');
let scratch: string;
const started: Started[] = [];

interface Started {
  readonly child: ChildProcess;
  readonly output: () => string;
  readonly ended: Promise<number | null>;
}

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'event broker-'));
});
afterEach(async () => {
  for (const { child, ended } of started.splice(0)) {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
    await ended;
  }
});
afterAll(async () => rm(scratch, { recursive: true, force: true }));

function start(command: readonly [string, ...string[]], env: Record<string, string>): Started {
  const [file, ...args] = command;
  const child = spawn(file, args, {
    cwd: top,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      PATH: process.env['PATH'],
      HOME: process.env['HOME'],
      SHUTDOWN_TIMEOUT_MS: '15000',
      ...env,
    },
  });
  const dismiss = guardProcess(child.pid!);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const ended = once(child, 'close').then(([code]: (number | null)[]) => {
    dismiss();
    return code ?? null;
  });
  const all = { child, output: () => output, ended };
  started.push(all);
  return all;
}

async function startNode(env: Record<string, string>): Promise<Started> {
  const all = start([process.execPath, 'apps/standalone/main.ts'], env);
  await untilReady(all);
  return all;
}

async function untilReady({ output }: Started): Promise<void> {
  await eventually(() => expect(output()).toMatch(/ack -d /), { timeoutMs: 60_000 });
}

/** Whose command line has the text in it. */
async function processesWith(text: string): Promise<string[]> {
  const { stdout } = await run('ps', ['-eo', 'pid,args', '-ww']);
  return stdout.split('\n').filter((line) => line.includes(text));
}

function keyIn(output: string): string | undefined {
  return /API key +(\S+)/.exec(output)?.[1];
}

/** The lines to paste, run by bash; what they print, line by line. */
async function runTour(output: string): Promise<string[]> {
  const tour = output.slice(output.indexOf('KEY='));
  const lines = tour.split('\n').filter((line) => /^(KEY=|curl |RECEIVED=|LEASE=)/.test(line));
  const { stdout } = await run('bash', ['-euo', 'pipefail', '-c', lines.join('\n')]);
  return stdout.trim().split('\n');
}

describe('npm start', () => {
  test('on an empty directory makes a broker whose printed lines work, ends with Ctrl-C, and has everything the next time', async () => {
    const dataDir = join(scratch, 'data');
    const env = { DATA_DIR: dataDir, PORT: String(await freePort()) };
    const first = start(['npm', 'start'], env);
    await untilReady(first);
    expect(first.output()).toMatch(/making a new PostgreSQL cluster/);
    expect(first.output()).toMatch(/migrated 0001_topics/);
    expect(first.output()).toContain(dataDir);
    const key = keyIn(first.output());
    expect(key).toMatch(/^ebk_[\w-]{40,}$/);
    expect((await stat(join(dataDir, 'api-key'))).mode & 0o777).toBe(0o600);
    expect((await readFile(join(dataDir, 'api-key'), 'utf8')).trim()).toBe(key);

    const answers = (await runTour(first.output())).map(
      (line) => JSON.parse(line) as Record<string, unknown>,
    );
    expect(answers).toMatchObject([
      { name: 'orders' },
      { name: 'billing', topic: 'orders' },
      { id: expect.stringMatching(/^\d+$/) as string, duplicate: false },
      { messages: [{ event: { type: 'order.created', data: { total: 12 } } }] },
      { succeeded: [expect.any(String)], failed: [] },
    ]);

    process.kill(-first.child.pid!, 'SIGINT');
    await first.ended;
    expect(await processesWith(dataDir)).toEqual([]);
    expect(first.output()).not.toMatch(/"level":"(error|fatal)"/);

    const second = await startNode(env);
    expect(second.output()).not.toMatch(/making a new PostgreSQL cluster/);
    expect(keyIn(second.output())).toBe(key);
    const { PORT: port } = env;
    const answer = await fetch(`http://127.0.0.1:${port}/api/v1/subscriptions/billing`, {
      headers: { authorization: `Bearer ${key}` },
    });
    expect(answer.status).toBe(200);
    second.child.kill('SIGTERM');
    expect(await second.ended).toBe(0);
    expect(await processesWith(dataDir)).toEqual([]);
  });

  test('given another key for once, it goes back to its own the next time', async () => {
    const port = String(await freePort());
    const env = { DATA_DIR: join(scratch, 'keys'), PORT: port };
    const given = 'a-key-that-was-given-for-once';
    let own = '';
    for (const wanted of [undefined, given, undefined]) {
      const one = await startNode({ ...env, ...(wanted && { ADMIN_API_KEY: wanted }) });
      const shown = keyIn(one.output()) ?? '';
      own ||= shown;
      expect(shown).toBe(wanted ?? own);
      const statuses = [];
      for (const key of [own, given]) {
        const headers = { authorization: `Bearer ${key}` };
        const { status } = await fetch(`http://127.0.0.1:${port}/api/v1/topics`, { headers });
        statuses.push(status);
      }
      expect(statuses).toEqual(wanted === given ? [401, 200] : [200, 401]);
      expect(one.output()).not.toContain('ADMIN_API_KEY: another key has taken the place');
      one.child.kill('SIGTERM');
      expect(await one.ended).toBe(0);
    }
  });

  test('on a directory that another uses says so and stops, and leaves the other alone', async () => {
    const dataDir = join(scratch, 'shared');
    const port = String(await freePort());
    const one = await startNode({ DATA_DIR: dataDir, PORT: port });
    const other = start([process.execPath, 'apps/standalone/main.ts'], {
      DATA_DIR: dataDir,
      PORT: '0',
    });
    expect(await other.ended).toBe(1);
    expect(other.output()).toMatch(/already running \(pid \d+\)/);
    expect((await fetch(`http://127.0.0.1:${port}/api/health`)).status).toBe(200);
    one.child.kill('SIGTERM');
    expect(await one.ended).toBe(0);
  });

  test('on a port that is taken names PORT, ends with 1 and leaves no process', async () => {
    const dataDir = join(scratch, 'taken');
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const { port } = taken.address() as { port: number };
    const failed = start([process.execPath, 'apps/standalone/main.ts'], {
      DATA_DIR: dataDir,
      PORT: String(port),
    });
    expect(await failed.ended).toBe(1);
    expect(failed.output()).toContain(`PORT: port ${port} on 127.0.0.1 is already in use`);
    expect(await processesWith(dataDir)).toEqual([]);
    taken.close();
  });

  test('told to stop while it makes the database leaves no process and a directory that works the next time', async () => {
    const dataDir = join(scratch, 'hasty');
    const env = { DATA_DIR: dataDir, PORT: '0' };
    const hasty = start([process.execPath, 'apps/standalone/main.ts'], env);
    await eventually(() => expect(hasty.output()).toMatch(/making a new PostgreSQL cluster/));
    hasty.child.kill('SIGINT');
    await hasty.ended;
    await eventually(async () => expect(await processesWith(dataDir)).toEqual([]));
    const second = await startNode(env);
    second.child.kill('SIGTERM');
    expect(await second.ended).toBe(0);
  });

  test("regression: PGSSLMODE of the user's shell keeps it from its own database", async () => {
    const one = await startNode({
      DATA_DIR: join(scratch, 'tls'),
      PORT: '0',
      PGSSLMODE: 'require',
      PGHOST: '192.0.2.1',
    });
    one.child.kill('SIGTERM');
    expect(await one.ended).toBe(0);
  });

  test('regression: told to stop while it migrates ends with an uncaught exception', async () => {
    const dataDir = join(scratch, 'migrating');
    const hasty = start([process.execPath, 'apps/standalone/main.ts'], {
      DATA_DIR: dataDir,
      PORT: '0',
    });
    await eventually(() => expect(hasty.output()).toMatch(/migrated 0001/), {
      timeoutMs: 60_000,
      intervalMs: 1,
    });
    hasty.child.kill('SIGTERM');
    expect(await hasty.ended).toBe(0);
    expect(hasty.output()).not.toMatch(/"level":"(error|fatal)"/);
    // what it was at is ended before the database is
    expect(hasty.output()).toMatch(/migrated 0004/);
    expect(await processesWith(dataDir)).toEqual([]);
  });

  test('regression: told to stop just before it is ready goes on without its database until it is cut', async () => {
    await using database = await cloneDatabase();
    const blocker = new pg.Client({ connectionString: database.url });
    await blocker.connect();
    await blocker.query('begin; lock table broker.worker in access exclusive mode');
    const hasty = start([process.execPath, 'apps/api/main.ts'], {
      DATABASE_URL: database.url,
      HOST: '127.0.0.1',
      PORT: '0',
    });
    await eventually(async () => {
      const { rows } = await blocker.query('select from pg_locks where not granted');
      expect(rows).toHaveLength(1);
    });
    hasty.child.kill('SIGTERM');
    await eventually(() => expect(hasty.output()).toMatch(/"msg":"stopping"/));
    const toldAt = performance.now();
    // the steps that end what has begun are over by now, but for the database's
    await delay(500);
    await blocker.end();
    expect(await hasty.ended).toBe(0);
    expect(performance.now() - toldAt).toBeLessThan(5000);
    expect(hasty.output()).not.toContain('loop fails');
  });

  test('with DATABASE_URL uses that database and the key that was given, and starts no other', async () => {
    await using database = await cloneDatabase();
    const dataDir = join(scratch, 'unused');
    const given = 'a-key-that-was-given-by-hand';
    const one = await startNode({
      DATA_DIR: dataDir,
      DATABASE_URL: database.url,
      ADMIN_API_KEY: given,
      PORT: '0',
    });
    expect(one.output()).not.toContain('starting the database');
    expect(keyIn(one.output())).toBe(given);
    expect(await runTour(one.output())).toHaveLength(5);
    one.child.kill('SIGTERM');
    expect(await one.ended).toBe(0);
    await expect(stat(dataDir)).rejects.toThrow('ENOENT');
  });
});
