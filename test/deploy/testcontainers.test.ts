/**
 * Goal: the tests run on a PostgreSQL of testcontainers where there is an engine and an image, and leave nothing behind.
 *
 * Method: a run of its own, of real test files, as a child process in the engine's network; the engine's events tell what it started.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, describe, expect, inject, test } from 'vitest';

import { Docker } from '#test/support/docker.ts';
import { eventually } from '#test/support/eventually.ts';

const engine = inject('docker');
const top = join(import.meta.dirname, '../..');
const label = 'event-broker.test-process';
const files = ['test/db/lease.test.ts', 'test/db/topics.test.ts'];

interface Results {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly testResults: readonly { readonly name: string; readonly status: string }[];
}

describe.skipIf(engine.missing !== undefined)('testcontainers', () => {
  const docker = new Docker(engine);

  const running = new Set<() => void>();
  afterEach(() => {
    for (const kill of running) kill();
  });

  /** A run of the test files; what it prints comes together in `output`. */
  function startRun(image: string, resultsDir: string) {
    const vitest = `${top}/node_modules/vitest/vitest.mjs run --config test/vitest.config.ts`;
    const options = ['--project', 'db', ...files];
    const command = [...engine.enter, process.execPath, ...vitest.split(' '), ...options];
    const child = spawn(command[0]!, command.slice(1), {
      cwd: top,
      // a process group of its own, so that one signal ends it with its workers
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
        HOME: '/nonexistent',
        CI: 'true',
        NO_COLOR: '1',
        DOCKER_HOST: engine.host,
        TEST_POSTGRES_IMAGE: image,
        TEST_RESULTS_DIR: resultsDir,
      },
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text;
      });
    const kill = () => process.kill(-child.pid!, 'SIGKILL');
    running.add(kill);
    const ended = new Promise<number | null>((resolve) =>
      child.once('close', (code) => {
        running.delete(kill);
        resolve(code);
      }),
    );
    return { ended, kill, output: () => output };
  }

  async function resultsOf(dir: string): Promise<Results> {
    const [file] = await readdir(dir);
    return JSON.parse(await readFile(join(dir, file!), 'utf8')) as Results;
  }

  const containers = async () =>
    (await docker.run('ps', '--all', '--quiet', '--no-trunc', '--filter', `label=${label}`))
      .split('\n')
      .filter((id) => id !== '');

  async function inScratch(work: (dir: string) => Promise<void>): Promise<void> {
    const dir = await mkdtemp(join(tmpdir(), 'event-broker-results-'));
    try {
      await work(dir);
    } finally {
      await rm(dir, { recursive: true });
    }
  }

  /** Of the containers that a run labels: what happened to them since then, in order. */
  async function eventsSince(since: string): Promise<string[]> {
    const options = ['--since', since, '--until', await clock(), '--filter', `label=${label}`];
    const text = await docker.run('events', ...options, '--format', '{{.Action}} {{.ID}}');
    return text.split('\n').filter((line) => /^(create|start|destroy) /.test(line));
  }

  const clock = async () => docker.run('info', '--format', '{{.SystemTime}}');

  test('files run on the container of TEST_POSTGRES_IMAGE, and it is gone afterwards', async () => {
    await inScratch(async (dir) => {
      const since = await clock();
      const run = startRun(engine.images.postgres, dir);
      expect(await run.ended, run.output()).toBe(0);
      const [, description = ''] = /^PostgreSQL of the tests: (.*)$/m.exec(run.output()) ?? [];
      console.log(description);
      const binary = await docker.run(
        'run',
        '--rm',
        '--entrypoint',
        'postgres',
        engine.images.postgres,
        '--version',
      );
      const version = binary.replace('postgres (PostgreSQL) ', '');
      expect(description).toContain(
        `testcontainers, ${engine.images.postgres}, version ${version}, `,
      );

      const results = await resultsOf(dir);
      expect(results.testResults.map((each) => each.status)).toEqual(files.map(() => 'passed'));
      expect(results).toMatchObject({ numFailedTests: 0 });
      expect(results.numPassedTests).toBeGreaterThan(files.length);

      const events = await eventsSince(since);
      const ids = new Set(events.map((line) => line.split(' ')[1]));
      expect(events.map((line) => line.split(' ')[0])).toEqual(['create', 'start', 'destroy']);
      expect(ids.size).toBe(1);
      expect(await containers()).toEqual([]);
    });
  });

  test('what a killed run leaves is removed by the next one', async () => {
    await inScratch(async (dir) => {
      const killed = startRun(engine.images.postgres, dir);
      const left = await eventually(
        async () => {
          expect(killed.output()).toContain('PostgreSQL of the tests: testcontainers');
          const found = await containers();
          expect(found).toHaveLength(1);
          return found;
        },
        { timeoutMs: 60_000, intervalMs: 50 },
      );
      killed.kill();
      await killed.ended;
      expect(await containers()).toEqual(left);

      const next = startRun(engine.images.postgres, dir);
      expect(await next.ended, next.output()).toBe(0);
      expect(await containers()).toEqual([]);
    });
  });

  test('an image that was asked for and is not there is an error, and not another server', async () => {
    await inScratch(async (dir) => {
      const run = startRun('event-broker.invalid/postgres:0', dir);
      expect(await run.ended).not.toBe(0);
      expect(run.output()).toContain(
        'TEST_POSTGRES_IMAGE is event-broker.invalid/postgres:0, but the engine has no such image',
      );
    });
  });
});
