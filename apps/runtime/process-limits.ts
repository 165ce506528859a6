import { readFile } from 'node:fs/promises';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { join, posix } from 'node:path';

/** What this process may use at most. */
export interface ProcessLimits {
  readonly memoryBytes: number;
  /** May be a part of one: 0.5. */
  readonly cpuCores: number;
}

const groups = '/sys/fs/cgroup';

/**
 * The limits of the process's cgroup (version 2, or 1) and of all groups around it that can be seen; without any, the machine's.
 * Read anew with each call: a limit may be changed while the process runs. `root` is where a test keeps other files.
 * https://docs.kernel.org/admin-guide/cgroup-v2.html
 */
export async function readProcessLimits(root = '/'): Promise<ProcessLimits> {
  const memory: number[] = [totalmem()];
  const quotas: number[] = [];
  const read = async (path: string): Promise<string> =>
    readFile(join(root, path), 'utf8').catch(() => '');
  for (const line of (await read('/proc/self/cgroup')).split('\n')) {
    const [, id, controllers = '', path = '/'] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? [];
    if (id === undefined) continue;
    const names = controllers.split(',');
    for (const folder of foldersFrom(path)) {
      if (controllers === '') {
        memory.push(limitOf(await read(join(groups, folder, 'memory.max'))));
        quotas.push(quotaOf(await read(join(groups, folder, 'cpu.max'))));
      } else if (names.includes('memory')) {
        memory.push(limitOf(await read(join(groups, 'memory', folder, 'memory.limit_in_bytes'))));
      } else if (names.includes('cpu')) {
        const quota = await read(join(groups, 'cpu', folder, 'cpu.cfs_quota_us'));
        const period = await read(join(groups, 'cpu', folder, 'cpu.cfs_period_us'));
        quotas.push(quotaOf(`${quota.trim()} ${period}`));
      }
    }
  }
  const quota = Math.min(...quotas);
  return {
    memoryBytes: Math.min(...memory),
    cpuCores: Number.isFinite(quota) ? Math.min(quota, cpus().length) : availableParallelism(),
  };
}

/** A group and those around it. In a container its path may be that of the host, of which nothing but the root is there. */
function foldersFrom(path: string): string[] {
  const folders = [posix.normalize(path)];
  for (let folder = folders[0] ?? '/'; folder !== '/' && folder !== '.';) {
    folder = posix.dirname(folder);
    folders.push(folder);
  }
  return folders.filter((folder) => !folder.startsWith('/..'));
}

/** Infinity for `max`, and for a file that is not there. */
function limitOf(text: string): number {
  const limit = Number.parseInt(text, 10);
  return limit > 0 ? limit : Infinity;
}

/** Of `<quota> <period>` in microseconds; Infinity for `max` and -1. */
function quotaOf(text: string): number {
  const [quota = '', period = ''] = text.trim().split(' ');
  const share = Number.parseInt(quota, 10) / Number.parseInt(period, 10);
  return share > 0 ? share : Infinity;
}
