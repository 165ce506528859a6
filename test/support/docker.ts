import { execFile, type ExecFileException } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { promisify } from 'node:util';

import type { TestDocker } from '../setup/docker.ts';

import { eventually } from './eventually.ts';

const run = promisify(execFile);

export interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end, whatever that is. */
export async function endOf(
  command: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly timeoutMs?: number } = {},
): Promise<Ended> {
  const { env, timeoutMs: timeout = 300_000 } = options;
  try {
    const done = await run(command[0]!, command.slice(1), {
      maxBuffer: 64 << 20,
      timeout,
      ...(env ? { env } : {}),
    });
    return { code: 0, ...done };
  } catch (error) {
    const { code, stdout = '', stderr = '' } = error as ExecFileException;
    return { code: typeof code === 'number' ? code : -1, stdout, stderr };
  }
}

/** The client of the engine of the tests. What it makes is called after `prefix`, and goes with it. */
export class Docker implements AsyncDisposable {
  readonly prefix = `eb-${randomUUID().slice(0, 8)}`;
  readonly engine: TestDocker;

  constructor(engine: TestDocker) {
    this.engine = engine;
  }

  /** Standard output of a command that must succeed. */
  async run(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.try(...args);
    if (code !== 0) throw new Error(`docker ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout.trim();
  }

  async try(...args: string[]): Promise<Ended> {
    return endOf(['docker', '--host', this.engine.host, ...args]);
  }

  async inspect<Result>(name: string, template: string): Promise<Result> {
    return JSON.parse(
      await this.run('inspect', '--format', `{{json ${template}}}`, name),
    ) as Result;
  }

  async healthy(name: string): Promise<void> {
    await eventually(
      async () => {
        const state = await this.inspect<{ Status: string; Health?: { Status: string } }>(
          name,
          '.State',
        );
        if (state.Health?.Status !== 'healthy') throw new Error(JSON.stringify(state));
      },
      { timeoutMs: 120_000, intervalMs: 250, what: `${name} healthy` },
    );
  }

  /** An HTTP request in the engine's network. */
  async fetch(
    url: string,
    init: {
      readonly method?: string;
      readonly headers?: Record<string, string>;
      readonly body?: string;
    } = {},
  ): Promise<{ readonly status: number; readonly text: string }> {
    const script =
      'const [url, init] = JSON.parse(process.argv[1]); const answer = await fetch(url, init);' +
      'console.log(JSON.stringify({ status: answer.status, text: await answer.text() }))';
    const command = [
      process.execPath,
      '--input-type=module',
      '--eval',
      script,
      JSON.stringify([url, init]),
    ];
    const { code, stdout, stderr } = await endOf([...this.engine.enter, ...command]);
    if (code !== 0) throw new Error(stderr);
    return JSON.parse(stdout) as { status: number; text: string };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const named = ['--filter', `name=^${this.prefix}`, '--quiet'];
    const lines = (text: string) => text.split('\n').filter((line) => line !== '');
    const containers = lines(await this.run('ps', '--all', ...named));
    if (containers.length > 0) await this.run('rm', '--force', '--volumes', ...containers);
    const networks = lines(await this.run('network', 'ls', ...named));
    if (networks.length > 0) await this.run('network', 'rm', ...networks);
  }
}
