import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { vi } from 'vitest';

import { startEmbeddedPostgres } from '../../apps/standalone/embedded-postgres.ts';
import type {
  EmbeddedPostgres,
  EmbeddedPostgresOptions,
} from '../../apps/standalone/embedded-postgres.ts';
import { isAlive } from '../../apps/standalone/postmaster.ts';
import { query } from './database.ts';

/** What an owner process says of the PostgreSQL that it has started, or why it has not. */
interface OwnedPostgres {
  readonly url: string;
  readonly pid: number;
  readonly strategy: string;
  readonly error?: string;
}

interface Identity {
  readonly uid?: number;
  readonly gid?: number;
}

export const ownerProgram = fileURLToPath(new URL('./embedded-postgres-owner.ts', import.meta.url));

/** A data directory of its own, and all that is started on it. Disposing stops that and removes the directory. */
export class DataDirLab implements AsyncDisposable {
  /** The directory in which the data directory is. */
  readonly scratch: string;
  /** Not made yet. */
  dataDir: string;
  readonly #cleanups: (() => Promise<unknown> | void)[] = [];

  private constructor(scratch: string) {
    this.scratch = scratch;
    this.dataDir = join(scratch, 'data');
  }

  static async open(): Promise<DataDirLab> {
    const scratch = await mkdtemp(join(tmpdir(), 'broker-embedded-'));
    await chmod(scratch, 0o755);
    return new DataDirLab(scratch);
  }

  /** Starts PostgreSQL here, without fsync unless the options say otherwise. */
  async start(options: Partial<EmbeddedPostgresOptions> = {}): Promise<EmbeddedPostgres> {
    const postgres = await startEmbeddedPostgres({ ...this.#defaults(), ...options });
    this.onDispose(() => postgres.stop());
    return postgres;
  }

  /** The same in a process of its own, which has a process group as a shell gives to a command. */
  async startOwner(options: object = {}, identity: Identity = {}) {
    const child = this.spawnOwner(options, identity);
    return { child, info: await ownedPostgres(child) };
  }

  spawnOwner(options: object = {}, identity: Identity = {}): ChildProcess {
    const argument = JSON.stringify({ ...this.#defaults(), ...options });
    const child = spawn(process.execPath, [ownerProgram, argument], {
      ...identity,
      cwd: '/',
      detached: true,
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.onDispose(() => stopOwner(child));
    return child;
  }

  onDispose(cleanup: () => Promise<unknown> | void): void {
    this.#cleanups.push(cleanup);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const cleanup of this.#cleanups.toReversed()) await cleanup();
    await rm(this.scratch, { recursive: true, force: true, maxRetries: 5 });
  }

  #defaults(): EmbeddedPostgresOptions {
    return { dataDir: this.dataDir, settings: { fsync: 'off' } };
  }
}

/** Waits for the first line that an owner prints. */
export async function ownedPostgres(child: ChildProcess): Promise<OwnedPostgres> {
  if (child.stdout === null) throw new Error('The owner has no output');
  const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
  return JSON.parse(line) as OwnedPostgres;
}

/** Lets an owner stop its PostgreSQL and end. */
export async function stopOwner(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.stdin?.end();
  await exited;
}

export async function killOwner(child: ChildProcess): Promise<void> {
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}

/** Whether a process runs. A dead one that nobody has asked for its exit code does not, although it has its pid still. */
export function isRunning(pid: number): boolean {
  if (process.platform !== 'linux') return isAlive(pid);
  if (!existsSync(`/proc/${pid}/stat`)) return false;
  return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
}

/** For a process that is not our child. */
export async function untilGone(pid: number): Promise<void> {
  await vi.waitUntil(() => !isRunning(pid), { timeout: 15_000, interval: 10 });
}

export async function writeRow(url: string): Promise<void> {
  await query(url, 'create table kept (n int)');
  await query(url, 'insert into kept values (42)');
}

/** What `writeRow` wrote: 42. */
export async function readRow(url: string): Promise<unknown> {
  return (await query(url, 'select n from kept'))[0]?.['n'];
}
