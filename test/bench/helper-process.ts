import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';

/** A program of this folder, which ends when it is disposed, or this process ends. */
export interface HelperProcess extends Disposable {
  readonly pid: number;
  /** The first line that it writes, as a number. */
  readonly port: () => Promise<number>;
}

export function startHelper(program: string, ...args: readonly string[]): HelperProcess {
  const child: ChildProcess = spawn(
    process.execPath,
    [join(import.meta.dirname, program), ...args],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  return {
    pid: child.pid ?? 0,
    port: async () => {
      const [line] = (await once(child.stdout!, 'data')) as [Buffer];
      return Number(line.toString());
    },
    [Symbol.dispose]: () => void child.stdin?.end(),
  };
}
