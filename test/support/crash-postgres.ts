import { execFile } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { migrate } from '#db/migrate.ts';
import { startEmbeddedPostgres } from '../../apps/standalone/embedded-postgres.ts';
import type { EmbeddedPostgres } from '../../apps/standalone/embedded-postgres.ts';
import { query } from './database.ts';
import { guardProcess, signalProcess } from './process-guard.ts';
import { asRole, createTestRoles, providedRoles } from './roles.ts';

/** Kills a postmaster and everything that it has started. */
export async function killPostgres(pid: number): Promise<void> {
  // It must not start anything between the look and the end.
  signalProcess(pid, 'SIGSTOP');
  const children = await childrenOf(pid);
  for (const each of [pid, ...children]) signalProcess(each, 'SIGKILL');
}

/** Removed by the next run, with the server that is in it, when this one is killed (test/setup/postgres.ts). */
const SCRATCH_PREFIX = 'event-broker-test-';

/**
 * A PostgreSQL of a test's own, migrated, that can be crashed and started again on the same port. With fsync on: of a
 * crash of its processes survives what was written to files, and not what was in the buffers of its shared memory.
 */
export class CrashPostgres implements AsyncDisposable {
  readonly #dataDir: string;
  readonly #settings: Readonly<Record<string, string | number>>;
  #server: EmbeddedPostgres | undefined;
  #dismissGuard: () => void = () => undefined;

  private constructor(dataDir: string, settings: Readonly<Record<string, string | number>>) {
    this.#dataDir = dataDir;
    this.#settings = settings;
  }

  static async start(
    settings: Readonly<Record<string, string | number>> = {},
  ): Promise<CrashPostgres> {
    const postgres = new CrashPostgres(await mkdtemp(join(tmpdir(), SCRATCH_PREFIX)), settings);
    try {
      await postgres.restart();
      await postgres.#makeRoles();
      await migrate({ databaseUrl: await asRole('owner', postgres.url) });
      return postgres;
    } catch (error) {
      await postgres[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** As the role that owns the database. */
  get url(): string {
    return this.#running().url;
  }

  /** The same database as the superuser. */
  get superuserUrl(): string {
    const url = new URL(this.#running().superuserUrl);
    url.pathname = '/broker';
    return url.href;
  }

  get port(): number {
    return this.#running().port;
  }

  /** All that it has written to its log since its last start. */
  async log(): Promise<string> {
    return readFile(join(this.#dataDir, 'postgres.log'), 'utf8');
  }

  /** Kills the postmaster and everything that it has started, all at once as far as they can tell. */
  async crash(): Promise<void> {
    const { pid, exited } = this.#running();
    await killPostgres(pid);
    await exited;
    this.#forget();
  }

  /** Fast shutdown: connections are cut, what is not committed is rolled back. */
  async stop(): Promise<void> {
    await this.#server?.stop();
    this.#forget();
  }

  /** Starts it again, after `crash` or `stop`; on the same port, as nobody else asks for that one. */
  async restart(): Promise<void> {
    const settings = { max_connections: 100, ...this.#settings };
    this.#server = await startEmbeddedPostgres({ dataDir: this.#dataDir, settings });
    this.#dismissGuard = guardProcess(this.#server.pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#server !== undefined) await this.crash();
    await rm(this.#dataDir, { recursive: true, force: true, maxRetries: 5 });
  }

  /** Processes have the same rights here as on the server of all tests; the test itself those of the owner. */
  async #makeRoles(): Promise<void> {
    const roles = await providedRoles();
    if (roles === undefined) return;
    await createTestRoles(this.superuserUrl, roles);
    await query(this.superuserUrl, 'grant broker_owner to broker');
    await query(this.superuserUrl, 'alter database broker owner to broker_owner');
  }

  #running(): EmbeddedPostgres {
    if (this.#server === undefined) throw new Error('PostgreSQL is stopped');
    return this.#server;
  }

  #forget(): void {
    this.#dismissGuard();
    this.#server = undefined;
  }
}

/** Direct children: all that a postmaster ever starts. */
async function childrenOf(parent: number): Promise<number[]> {
  const table = process.platform === 'linux' ? await procTable() : await psTable();
  return table.filter(([, ppid]) => ppid === parent).map(([pid]) => pid);
}

type ProcessRow = readonly [pid: number, ppid: number];

async function procTable(): Promise<ProcessRow[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const rows = await Promise.all(
    pids.map(async (pid): Promise<ProcessRow> => {
      const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
      // The name, in brackets, may hold anything; state and parent follow it.
      return [Number(pid), Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1])];
    }),
  );
  return rows;
}

async function psTable(): Promise<ProcessRow[]> {
  const { stdout } = await promisify(execFile)('ps', ['-axo', 'pid=,ppid=']);
  return stdout.split('\n').map((line): ProcessRow => {
    const [pid, ppid] = line.trim().split(/\s+/).map(Number);
    return [pid ?? 0, ppid ?? 0];
  });
}
