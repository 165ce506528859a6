import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, test } from 'vitest';
import { shutdownPhases } from '#runtime/lifecycle.ts';

const fixture = join(import.meta.dirname, '../support/lifecycle-process.ts');

let child: ChildProcess | undefined;
afterEach(() => void child?.kill('SIGKILL'));

type Run = {
  readonly lines: string[];
  /** Resolves when a line with this text has come. */
  readonly said: (text: string) => Promise<void>;
  readonly kill: (signal: NodeJS.Signals) => void;
  readonly exit: Promise<{ code: number | null; signal: string | null; stderr: string }>;
  readonly steps: () => string[];
};

function run(scenario: string, env: Record<string, string> = {}): Run {
  const process_ = spawn(process.execPath, [fixture, scenario], {
    env: { PATH: process.env['PATH'], DATABASE_URL: 'postgres://db/broker', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  child = process_;
  const lines: string[] = [];
  const listeners = new Set<() => void>();
  let stderr = '';
  process_.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  createInterface(process_.stdout).on('line', (line) => {
    lines.push(line);
    for (const listener of listeners) listener();
  });
  return {
    lines,
    async said(text) {
      await new Promise<void>((resolve) => {
        const look = (): void => {
          if (lines.some((line) => line.includes(text))) resolve();
        };
        listeners.add(look);
        look();
      });
    },
    kill: (signal) => void process_.kill(signal),
    exit: once(process_, 'close').then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as string | null,
      stderr,
    })),
    steps: () => lines.filter((line) => line.startsWith('step ')).map((line) => line.slice(5)),
  };
}

describe('a signal', () => {
  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s: the phases run in order, then exit 0',
    async (name) => {
      const { said, kill, exit, steps } = run('ordered');
      await said('"msg":"started"');
      kill(name);
      expect(await exit).toEqual({ code: 0, signal: null, stderr: '' });
      const expected = shutdownPhases.flatMap((phase) =>
        phase === 'close'
          ? // One after the other, last registered first.
            ['reaper begins', 'reaper ends', 'api begins', 'api ends', 'server'].map(
              (s) => `close ${s}`,
            )
          : ['api begins', 'reaper begins', 'api ends', 'reaper ends'].map((s) => `${phase} ${s}`),
      );
      expect(steps()).toEqual(['aborted', ...expected]);
    },
  );

  test('a step that fails is logged, the others run, exit 1', async () => {
    const { lines, said, kill, exit, steps } = run('failing');
    await said('"msg":"started"');
    kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 1, signal: null });
    expect(steps()).toEqual(['close server']);
    expect(lines.join()).toContain('cannot drain');
  });

  test('the same signal twice at once is one: npm passes Ctrl-C on', async () => {
    const { said, kill, exit } = run('ordered');
    await said('"msg":"started"');
    kill('SIGINT');
    kill('SIGINT');
    expect(await exit).toMatchObject({ code: 0, signal: null });
  });

  test.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ] as const)('a second %s ends the process at once with %d', async (name, code) => {
    const { lines, said, kill, exit } = run('hanging');
    await said('"msg":"started"');
    kill('SIGTERM');
    await said('"msg":"stopping"');
    // Signals that come within the grace are ignored, so they are sent until one is not.
    const again = setInterval(() => kill(name), 20);
    expect(await exit).toMatchObject({ code, signal: null });
    clearInterval(again);
    expect(lines.at(-1)).toContain('"unfinished":["drain: stuck"]');
  });

  test('while it starts: the process ends although the start never does', async () => {
    const { said, kill, exit, steps } = run('starting');
    await said('step starting');
    kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 0, signal: null, stderr: '' });
    expect(steps()).toEqual(['starting', 'close server']);
  });

  test('a step that is registered too late runs at once', async () => {
    const { said, kill, exit, steps } = run('late');
    await said('"msg":"started"');
    kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 0 });
    expect(steps()).toEqual(['late', 'close server']);
  });
});

describe('the deadline', () => {
  const short = { SHUTDOWN_TIMEOUT_MS: '1000', STATEMENT_TIMEOUT_MS: '1000' };

  test('ends a shutdown that hangs with 1 and names the step, which was told before', async () => {
    const { lines, said, kill, exit, steps } = run('hanging', short);
    await said('"msg":"started"');
    kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 1, signal: null });
    expect(steps()).toEqual(['deadline']);
    expect(lines.at(-1)).toContain('"unfinished":["drain: stuck"]');
    expect(lines.at(-1)).toContain('not stopped in time');
  });

  test('ends a process that something keeps after its shutdown', async () => {
    const { lines, said, kill, exit, steps } = run('kept', short);
    await said('"msg":"started"');
    kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 1, signal: null });
    expect(steps()).toEqual(['close server', 'telemetry']);
    expect(lines.at(-1)).toContain('"active":["');
  });
});

describe('the process', () => {
  test('a start that fails is logged and told in one plain line, what was opened is closed, exit 1', async () => {
    const { lines, exit, steps } = run('refused');
    expect(await exit).toMatchObject({
      code: 1,
      signal: null,
      stderr: expect.stringMatching(/^\nfixture cannot start: .*no such database.*\n$/) as string,
    });
    // the log and the steps are written by two writers
    expect(lines.join('\n')).toContain('no such database');
    expect(steps()).toEqual(['close opened', 'close server']);
  });

  test.each([
    ['uncaught', 'uncaught exception'],
    ['unhandled', 'unhandled rejection'],
  ])('an %s error is logged as fatal, exit 1', async (scenario, message) => {
    const { lines, exit } = run(scenario);
    expect(await exit).toMatchObject({ code: 1, signal: null });
    const logged = lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    expect(logged).toContainEqual(
      expect.objectContaining({
        level: 'fatal',
        service: 'fixture',
        msg: message,
        err: expect.objectContaining({ message: 'defect' }) as object,
      }),
    );
  });

  test('one that has nothing more to do ends by itself with 0', async () => {
    expect(await run('finished').exit).toMatchObject({ code: 0, signal: null, stderr: '' });
  });

  test('a wrong configuration is printed in full without a stack, exit 1', async () => {
    const { lines, exit } = run('ordered', { PROT: '1', HEALTH_PORT: 'x' });
    const { code, stderr } = await exit;
    expect(code).toBe(1);
    expect(lines).toEqual([]);
    expect(stderr).toBe(
      'The configuration is wrong:\n' +
        '  HEALTH_PORT: must be a whole number from 0 to 65535 in plain digits, got "x"\n' +
        '  PROT: is not known; did you mean PORT?\n',
    );
  });
});
