import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);

/**
 * Makes sure that a command is there, by Debian's package of it where root may install it; its service is not started.
 * Otherwise says in words why it is not.
 */
export async function whyNotThere(
  command: string,
  debianPackage: string,
): Promise<string | undefined> {
  if (await isThere(command)) return undefined;
  if (process.getuid?.() !== 0) return `no ${command} here, and only root can install it`;
  if (!existsSync('/usr/bin/apt-get')) return `no ${command} here, and only Debian’s is installed`;
  // A package of a server would start it.
  const policy = '/usr/sbin/policy-rc.d';
  const isOurs = !existsSync(policy);
  if (isOurs) await writeFile(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 });
  try {
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
    const options = { env, maxBuffer: 64 << 20 };
    await run('apt-get', ['update'], options);
    await run('apt-get', ['install', '--yes', '--no-install-recommends', debianPackage], options);
  } finally {
    if (isOurs) await rm(policy);
  }
  return (await isThere(command)) ? undefined : `${debianPackage} has no ${command}`;
}

async function isThere(command: string): Promise<boolean> {
  return run('sh', ['-c', 'command -v "$1"', 'sh', command]).then(
    () => true,
    () => false,
  );
}
