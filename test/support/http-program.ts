import { spawn } from 'node:child_process';
import { once } from 'node:events';

import { eventually } from './eventually.ts';
import { guardProcess, signalProcess } from './process-guard.ts';

export interface HttpProgramOptions {
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** What answers 200 once it serves. */
  readonly readyUrl: string;
}

/** A program that serves HTTP. Disposing ends it. */
export interface HttpProgram extends AsyncDisposable {
  /** What it wrote to standard error. */
  stderr(): string;
}

/** Starts it, and waits until it serves; when it ends before, what it wrote is in the error. */
export async function startHttpProgram(
  command: string,
  { args, env = {}, readyUrl }: HttpProgramOptions,
): Promise<HttpProgram> {
  const child = spawn(command, args, {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  if (child.pid === undefined) throw new Error(`${command} cannot be run`);
  const { pid } = child;
  const exited = once(child, 'close');
  exited.then(guardProcess(pid), () => undefined);
  let written = '';
  child.stderr.on('data', (chunk: Buffer) => void (written += chunk.toString()));
  const program: HttpProgram = {
    stderr: () => written,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) signalProcess(pid, 'SIGKILL');
      await exited;
    },
  };
  try {
    const look = async (): Promise<void> => {
      if (child.exitCode !== null) return;
      const { status } = await fetch(readyUrl);
      if (status !== 200) throw new Error(`it answers ${status}`);
    };
    await eventually(look, { timeoutMs: 60_000, what: command });
    if (child.exitCode !== null) throw new Error(`${command} ended: ${written}`);
    return program;
  } catch (error) {
    await program[Symbol.asyncDispose]();
    throw error;
  }
}
