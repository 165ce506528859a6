import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { eventually } from './eventually.ts';
import { guardProcess, signalProcess } from './process-guard.ts';
import { asRole, type Role } from './roles.ts';

export type Service = 'api' | 'worker' | 'reaper' | 'standalone';

/** One line of a process's log. */
export interface LogLine {
  readonly level?: string;
  readonly msg?: string;
  readonly [member: string]: unknown;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface ProcessOptions {
  readonly service: Service;
  readonly name: string;
  readonly env: Readonly<Record<string, string>>;
}

const top = join(import.meta.dirname, '../..');
const readyMs = 30_000;
/** Longer than any SHUTDOWN_TIMEOUT_MS of a test. */
const stopMs = 30_000;

/** One `node apps/<service>/main.ts`, which can be ended in any way and started again on the same port. It has no more rights in the database than its service needs. */
export class BrokerProcess {
  readonly name: string;
  readonly service: Service;
  /** Of all its lives. */
  readonly logs: LogLine[] = [];
  /** What it wrote to standard error, and what of its output is no log line. */
  readonly stray: string[] = [];
  readonly #env: Readonly<Record<string, string>>;
  readonly #onDeath: (message: string) => void;
  #child: ChildProcess | undefined;
  #exit: Promise<Exit> | undefined;
  #isEndWanted = false;
  #port = 0;

  constructor(options: ProcessOptions, onDeath: (message: string) => void) {
    this.name = options.name;
    this.service = options.service;
    this.#env = options.env;
    this.#onDeath = onDeath;
  }

  /** Where it listens, also while it does not run. */
  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  get isRunning(): boolean {
    return (
      this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null
    );
  }

  /** Resolves with its end, whoever brings that about. */
  get exited(): Promise<Exit> {
    if (this.#exit === undefined) throw new Error(`${this.name} was never started`);
    return this.#exit;
  }

  /** Starts it; `ready` waits until it works. */
  async start(): Promise<void> {
    if (this.isRunning) throw new Error(`${this.name} runs already`);
    this.#port ||= await freePort();
    const databaseUrl = this.#env['DATABASE_URL'];
    const url = databaseUrl && (await asRole(roleOf(this.service), databaseUrl));
    const child = spawn(process.execPath, [`apps/${this.service}/main.ts`], {
      cwd: top,
      // A group of its own, so that all of `npm start` can be hit at once.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: process.env['PATH'],
        HOME: process.env['HOME'],
        HOST: '127.0.0.1',
        ...portsOf(this.service, String(this.#port)),
        ...this.#env,
        ...(url && { DATABASE_URL: url }),
      },
    });
    this.#isEndWanted = false;
    this.#child = child;
    if (child.pid === undefined) throw new Error(`${this.name} cannot be started`);
    const dismissGuard = guardProcess(child.pid);
    createInterface(child.stdout).on('line', (line) => this.#note(line));
    createInterface(child.stderr).on('line', (line) => this.stray.push(line));
    this.#exit = once(child, 'close').then(() => {
      dismissGuard();
      const exit = { code: child.exitCode, signal: child.signalCode };
      if (!this.#isEndWanted) this.#onDeath(this.#obituary(exit));
      return exit;
    });
  }

  /** Waits until /api/health says that it is ready. */
  async ready(timeoutMs = readyMs): Promise<void> {
    const look = async (): Promise<void> => {
      if (!this.isRunning) return;
      const { ok, status } = await fetch(`${this.url}/api/health`, {
        signal: AbortSignal.timeout(2000),
      });
      if (!ok) throw new Error(`/api/health says ${status}`);
    };
    await eventually(look, { timeoutMs, what: `readiness of ${this.name}` });
    if (!this.isRunning) throw new Error(this.#obituary(await this.exited));
  }

  /** Sends a signal that may end it, and says that this is wanted. Does not wait. */
  signal(signal: NodeJS.Signals): void {
    this.#isEndWanted = true;
    if (this.isRunning) signalProcess(this.pid, signal);
  }

  /** Ends it by a signal (SIGKILL) and waits for the end. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<Exit> {
    this.signal(signal);
    return this.exited;
  }

  /** Stops it for the time being, with everything that it holds. */
  pause(): void {
    signalProcess(this.pid, 'SIGSTOP');
  }

  continue(): void {
    signalProcess(this.pid, 'SIGCONT');
  }

  /** SIGTERM; SIGKILL when it does not end. */
  async stop(): Promise<Exit> {
    if (!this.isRunning) return this.exited;
    this.continue();
    const cut = setTimeout(() => this.signal('SIGKILL'), stopMs);
    const exit = await this.kill('SIGTERM');
    clearTimeout(cut);
    return exit;
  }

  /** Megabytes of memory that it has now. */
  async residentMb(): Promise<number> {
    const { text } = await (
      await fetch(`${this.url}/api/metrics`, { headers: this.#auth() })
    )
      .text()
      .then((body) => ({ text: body }));
    const [, bytes] = /^process_resident_memory_bytes(?:\{.*\})? (\S+)$/m.exec(text) ?? [];
    if (bytes === undefined) throw new Error(`no process_resident_memory_bytes from ${this.name}`);
    return Number(bytes) / 1024 / 1024;
  }

  #auth(): Record<string, string> {
    const key = this.#env['ADMIN_API_KEY'];
    return key === undefined ? {} : { authorization: `Bearer ${key}` };
  }

  #note(line: string): void {
    try {
      this.logs.push(JSON.parse(line) as LogLine);
    } catch {
      this.stray.push(line);
    }
  }

  #obituary({ code, signal }: Exit): string {
    const last = [
      ...this.logs.slice(-5).map((line) => JSON.stringify(line)),
      ...this.stray.slice(-20),
    ];
    return `${this.name} ended by itself (code ${code}, signal ${signal}):\n${last.join('\n')}`;
  }
}

/** A reaper makes and drops partitions; `npm start` does everything. */
function roleOf(service: Service): Role {
  return service === 'api' || service === 'worker' ? service : 'owner';
}

/** A worker and a reaper listen for their health and metrics only. */
function portsOf(service: Service, port: string): Readonly<Record<string, string>> {
  switch (service) {
    case 'api':
      return { PORT: port };
    case 'worker':
    case 'reaper':
      return { HEALTH_PORT: port };
    case 'standalone':
      return { PORT: port, HEALTH_PORT: '0' };
  }
}

export interface ClusterOptions {
  /** Of a database that is there; without one the whole of `npm start` runs, on `dataDir`. */
  readonly databaseUrl?: string;
  readonly dataDir?: string;
  /** How many of each are started (1, no worker, 1). */
  readonly apis?: number;
  readonly workers?: number;
  readonly reapers?: number;
  /** For all of them, over the ones that are chosen here. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Real processes on one database. Disposing ends them all, and throws when one of them had died unasked. */
export class Cluster implements AsyncDisposable {
  readonly apis: readonly BrokerProcess[];
  readonly workers: readonly BrokerProcess[];
  readonly reapers: readonly BrokerProcess[];
  /** Opens everything. */
  readonly adminKey = 'test-admin-key-of-the-cluster';
  readonly #deaths: string[] = [];

  private constructor(options: ClusterOptions) {
    const { databaseUrl, dataDir, apis = 1, workers = 0, reapers = 1 } = options;
    const env = {
      NODE_ENV: 'test',
      ...(databaseUrl !== undefined && { DATABASE_URL: databaseUrl }),
      ...(dataDir !== undefined && { DATA_DIR: dataDir }),
      ADMIN_API_KEY: this.adminKey,
      REAPER_INTERVAL_MS: '200',
      ALLOW_PRIVATE_TARGETS: '127.0.0.0/8,::1',
      SHUTDOWN_TIMEOUT_MS: '10000',
      ...options.env,
    };
    const make = (service: Service, count: number): BrokerProcess[] =>
      Array.from({ length: count }, (_, index) => {
        const name = `${service}-${index + 1}`;
        const onDeath = (message: string): void => void this.#deaths.push(message);
        return new BrokerProcess({ service, name, env: { INSTANCE: name, ...env } }, onDeath);
      });
    this.apis = dataDir === undefined ? make('api', apis) : make('standalone', 1);
    this.workers = dataDir === undefined ? make('worker', workers) : [];
    this.reapers = dataDir === undefined ? make('reaper', reapers) : [];
  }

  /** Starts all processes, and waits until they are ready. */
  static async start(options: ClusterOptions): Promise<Cluster> {
    const cluster = new Cluster(options);
    try {
      await cluster.startAll();
      return cluster;
    } catch (error) {
      await cluster.killAll();
      throw error;
    }
  }

  get all(): readonly BrokerProcess[] {
    return [...this.apis, ...this.workers, ...this.reapers];
  }

  /** Of the APIs. */
  get urls(): readonly string[] {
    return this.apis.map((api) => api.url);
  }

  /** Starts those that do not run, and waits until all are ready. */
  async startAll(): Promise<void> {
    await Promise.all(this.all.filter((each) => !each.isRunning).map((each) => each.start()));
    await Promise.all(this.all.map((each) => each.ready()));
  }

  /** Ends those that run, by SIGKILL unless another signal is named. */
  async killAll(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    await Promise.all(this.all.filter((each) => each.isRunning).map((each) => each.kill(signal)));
  }

  /** Throws when a process has ended that nobody had told to. */
  assertAlive(): void {
    if (this.#deaths.length > 0) throw new Error(this.#deaths.join('\n'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.killAll();
    this.assertAlive();
  }
}

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
