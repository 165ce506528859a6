import { readFile, readdir, rm, stat } from 'node:fs/promises';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';

/** How long a PostgreSQL gets to end after each signal, in milliseconds. */
export interface StopDeadlines {
  /** SIGINT: roll back, disconnect, write a checkpoint. */
  readonly fastMs: number;
  /** SIGQUIT: end without a checkpoint; the next start recovers from the log. */
  readonly immediateMs: number;
}

const POLL_MS = 10;

/** Whether a process with this id exists, also one of another user. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Whether the postmaster with this pid says in its own file that it takes connections. */
export async function isReady(clusterDir: string, pid: number): Promise<boolean> {
  const lines = (await readPostmasterFile(clusterDir)).split('\n');
  return Number(lines[0]) === pid && lines[7]?.trim() === 'ready';
}

/**
 * Ends what an earlier owner of this data directory left running, and puts a misleading `postmaster.pid` away.
 * To be called by the holder of the data directory's lock only. An orphan is stopped rather than adopted: it may run
 * with other settings, and it is not our child, so its end would go unnoticed.
 */
export async function stopLeftovers(
  clusterDir: string,
  deadlines: StopDeadlines,
  onLog: (line: string) => void,
) {
  const postmaster = Number((await readPostmasterFile(clusterDir)).split('\n')[0]);
  let left = await clusterProcesses(clusterDir);
  if (left.includes(postmaster)) {
    onLog(`stopping the PostgreSQL that an earlier run left behind (pid ${postmaster})`);
    await stopProcesses(clusterDir, [postmaster], deadlines);
    left = await clusterProcesses(clusterDir);
  }
  // Backends whose postmaster is gone end by themselves, but only after the statement that they are in.
  if (left.length > 0) await stopProcesses(clusterDir, left, { ...deadlines, fastMs: 0 });
  // PostgreSQL itself knows a dead pid, but not one that another program has got meanwhile, nor an empty file.
  if (!(postmaster > 0) || isAlive(postmaster))
    await rm(join(clusterDir, 'postmaster.pid'), { force: true });
}

/** Fast shutdown, then immediate, then kill; resolves when none of the processes runs any more. */
async function stopProcesses(
  clusterDir: string,
  pids: readonly number[],
  deadlines: StopDeadlines,
): Promise<void> {
  const steps = [
    { signal: 'SIGINT', waitMs: deadlines.fastMs },
    { signal: 'SIGQUIT', waitMs: deadlines.immediateMs },
    { signal: 'SIGKILL', waitMs: 10_000 },
  ] as const;
  for (const { signal, waitMs } of steps) {
    if (waitMs === 0) continue;
    for (const pid of pids) signalIfAlive(pid, signal);
    const deadline = performance.now() + waitMs;
    while (performance.now() < deadline) {
      // Not "is the pid alive": where process 1 does not reap (`sleep infinity` in a container), it stays for ever.
      const left = await clusterProcesses(clusterDir);
      if (!pids.some((pid) => left.includes(pid))) return;
      await delay(POLL_MS);
    }
  }
  throw new Error(`PostgreSQL processes of an earlier run cannot be stopped: ${pids.join(', ')}`);
}

/** Sends a signal; a process that is gone already is no error. */
export function signalIfAlive(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

async function readPostmasterFile(clusterDir: string): Promise<string> {
  return readFile(join(clusterDir, 'postmaster.pid'), 'utf8').catch(() => '');
}

/**
 * All PostgreSQL processes of this cluster. Each has the data directory as its working directory, which is certain
 * where the pid in a file is not: pids are used again.
 */
async function clusterProcesses(clusterDir: string): Promise<number[]> {
  if (process.platform !== 'linux') return clusterProcessesByCommand(clusterDir);
  const cluster = await stat(clusterDir).catch(() => null);
  if (cluster === null) return [];
  const found: number[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const command = await readFile(`/proc/${name}/comm`, 'utf8').catch(() => '');
    if (command.trim() !== 'postgres') continue;
    // Other users' processes and zombies have no readable link, and are none of ours.
    const directory = await stat(`/proc/${name}/cwd`).catch(() => null);
    if (directory?.dev === cluster.dev && directory.ino === cluster.ino) found.push(Number(name));
  }
  return found;
}

/** Without /proc (macOS): the postmaster, by its command line; its children end with it. */
async function clusterProcessesByCommand(clusterDir: string): Promise<number[]> {
  const { stdout } = await promisify(execFile)('ps', ['-axww', '-o', 'pid=,command=']);
  return stdout
    .split('\n')
    .filter((line) => line.includes('postgres') && line.includes(`-D ${clusterDir} `))
    .map((line) => Number.parseInt(line, 10));
}
