import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as delay } from 'node:timers/promises';

import { isAlive } from './postmaster.ts';

/** The right to use a data directory; ends with `release()` or with the process. */
export interface DataDirLock {
  release(): Promise<void>;
}

/** Another living process uses the data directory; `pid` is null when it could not be found out. */
export class AlreadyRunningError extends Error {
  readonly pid: number | null;

  constructor(dataDir: string, pid: number | null) {
    super(`already running${pid === null ? '' : ` (pid ${pid})`} on the data directory ${dataDir}`);
    this.name = 'AlreadyRunningError';
    this.pid = pid;
  }
}

const SQLITE_BUSY = 5;

/**
 * Takes the exclusive lock of a data directory that exists, without waiting.
 *
 * The lock is the kernel's own record lock (fcntl) on `broker.lock`. It dies with the process, however that ends, is
 * not inherited by the PostgreSQL that the process starts, and two takers at the same moment cannot both have it. A
 * file with pid and start time has a window between "stale" and "mine"; a socket in the abstract namespace is one per
 * network namespace, so two containers on one volume would both get it; a `flock` child is one more process to lose.
 * Node has no binding for fcntl, but the SQLite inside it locks this way, also against itself in the same process.
 * Nothing may open and close `broker.lock` beside it: closing any descriptor of a file ends the process's locks on it.
 *
 * Throws AlreadyRunningError when somebody else holds it.
 */
export async function lockDataDir(dataDir: string): Promise<DataDirLock> {
  const database = new DatabaseSync(join(dataDir, 'broker.lock'), { timeout: 0 });
  try {
    // Locks at once. Nothing is ever written, so no journal file is wanted.
    database.exec('pragma journal_mode = memory; begin exclusive');
  } catch (error) {
    database.close();
    if ((error as { errcode?: number }).errcode === SQLITE_BUSY) {
      throw new AlreadyRunningError(dataDir, await readOwner(dataDir));
    }
    throw new Error(`cannot lock the data directory ${dataDir}`, { cause: error });
  }
  const pidFile = join(dataDir, 'broker.pid');
  // Only for the message to others: the lock decides, this file may be stale. Replaced, because it may be another's.
  await rm(pidFile, { force: true });
  await writeFile(pidFile, `${process.pid}\n`);
  let isHeld = true;
  return {
    async release() {
      if (!isHeld) return;
      isHeld = false;
      await rm(pidFile, { force: true });
      database.close();
    },
  };
}

/** The holder writes its pid just after it took the lock, so a look in between is repeated for a moment. */
async function readOwner(dataDir: string): Promise<number | null> {
  for (let look = 0; look < 20; look += 1) {
    const pid = Number(await readFile(join(dataDir, 'broker.pid'), 'utf8').catch(() => ''));
    if (Number.isInteger(pid) && pid > 0 && isAlive(pid)) return pid;
    await delay(25);
  }
  return null;
}
