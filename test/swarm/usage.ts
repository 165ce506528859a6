import { execFile } from 'node:child_process';
import { globSync, readFileSync, readlinkSync } from 'node:fs';
import { promisify } from 'node:util';

import type { Lab } from './lab.ts';

const run = promisify(execFile);

/** What the hosts of a lab take of this machine, in words: memory of their processes (shared pages in proportion), and disk. */
export async function usageOf(lab: Lab): Promise<string> {
  const { stdout } = await run('du', ['--summarize', '--block-size=M', lab.dir]);
  const parts = lab.numbers
    .filter((n) => lab.host(n).isRunning)
    .map((n) => `host ${n} ${memoryOf(lab.host(n).pid)} MiB`);
  return `${parts.join(', ')}; disk ${stdout.split('\t')[0]}iB`;
}

/** Of all processes in the process namespace of one. */
function memoryOf(first: number): number {
  const own = readlinkSync(`/proc/${first}/ns/pid`);
  let kibibytes = 0;
  for (const dir of globSync('/proc/[0-9]*')) {
    try {
      if (readlinkSync(`${dir}/ns/pid`) !== own) continue;
      const [, size = 0] = /^Pss:\s+(\d+)/m.exec(readFileSync(`${dir}/smaps_rollup`, 'utf8')) ?? [];
      kibibytes += Number(size);
    } catch {
      // it has ended meanwhile
    }
  }
  return Math.round(kibibytes / 1024);
}
