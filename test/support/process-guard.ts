import { spawn } from 'node:child_process';

/**
 * Makes sure that a process does not outlive this one, however this one ends, SIGKILL included: a shell waits at the end
 * of a pipe whose other end only we have. Call what is returned once the process has ended by itself.
 */
export function guardProcess(pid: number): () => void {
  // A session of its own: Ctrl-C is for the tests, and the end of the pipe comes after it.
  const guard = spawn('/bin/sh', ['-c', `read -r line || kill -9 ${pid}`], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  guard.stdin.on('error', () => undefined);
  guard.unref();
  (guard.stdin as unknown as { unref(): void }).unref();
  return () => guard.stdin.end('ended\n');
}

/** Sends a signal; a process that is gone already is no error. */
export function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
