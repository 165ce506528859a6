import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { freePort, type Exit } from './cluster.ts';
import { eventually } from './eventually.ts';
import type { NginxBinary } from './nginx-binary.ts';
import { guardProcess, signalProcess } from './process-guard.ts';
import { selfSigned } from './self-signed.ts';

const confDir = join(import.meta.dirname, '../../deploy/nginx');

/** One line of the access log. */
export interface AccessLine {
  readonly request_id: string;
  readonly status: number;
  readonly path: string;
  readonly ip: string;
  readonly handling: string;
  readonly upstream: string;
  readonly upstream_status: string;
  readonly [member: string]: unknown;
}

/** Settings of deploy/nginx/start, over the ones that are chosen here. */
export type NginxSettings = Readonly<Record<string, string>>;

/** The project's nginx, started by the project's own script. Disposing ends it. */
export class Nginx implements AsyncDisposable {
  readonly dir: string;
  /** The first of LISTEN_ADDRESSES, else 127.0.0.1. */
  readonly host: string;
  readonly port: number;
  readonly tlsPort: number;
  readonly cert: string;
  /** What it wrote to standard error. */
  readonly errors: string[] = [];
  readonly #child: ChildProcess;
  readonly #exit: Promise<Exit>;

  private constructor(child: ChildProcess, made: Made) {
    this.dir = made.dir;
    this.host = made.host;
    this.port = made.port;
    this.tlsPort = made.tlsPort;
    this.cert = made.cert;
    this.#child = child;
    const dismissGuard = guardProcess(this.pid);
    child.stderr?.on('data', (piece: Buffer) => this.errors.push(piece.toString()));
    this.#exit = once(child, 'close').then(() => {
      dismissGuard();
      return { code: child.exitCode, signal: child.signalCode };
    });
  }

  /** Starts it, and waits until it takes connections. */
  static async start(binary: NginxBinary, settings: NginxSettings): Promise<Nginx> {
    const made = await make(binary, settings);
    const child = spawn('sh', [join(confDir, 'start')], {
      env: made.env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    if (child.pid === undefined) throw new Error('nginx cannot be started');
    const nginx = new Nginx(child, made);
    try {
      await nginx.#listening();
      return nginx;
    } catch (error) {
      await nginx[Symbol.asyncDispose]();
      throw new Error(`nginx does not listen: ${nginx.errors.join('')}`, { cause: error });
    }
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get url(): string {
    return `http://${this.host}:${this.port}`;
  }

  get tlsUrl(): string {
    return `https://localhost:${this.tlsPort}`;
  }

  get exited(): Promise<Exit> {
    return this.#exit;
  }

  signal(signal: NodeJS.Signals): void {
    signalProcess(this.pid, signal);
  }

  /** Process ids of its workers, those that are leaving included. */
  workers(): number[] {
    const text = readFileSync(`/proc/${this.pid}/task/${this.pid}/children`, 'utf8');
    return text.trim().split(' ').filter(Boolean).map(Number);
  }

  /** Has the configuration and the certificate read again, and waits until new workers serve. */
  async reload(): Promise<void> {
    const before = this.workers();
    this.signal('SIGHUP');
    await eventually(
      () => {
        if (!this.workers().some((pid) => !before.includes(pid))) throw new Error('no new worker');
      },
      { what: 'a worker with the new configuration' },
    );
  }

  /** What its log says of the requests that have ended so far. */
  async accessLines(): Promise<AccessLine[]> {
    const text = await this.accessLog();
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as AccessLine);
  }

  async accessLog(): Promise<string> {
    return readFile(join(this.dir, 'access.log'), 'utf8');
  }

  /** Puts a file where nginx looks for its certificate. */
  async put(name: string, text: string): Promise<void> {
    await writeFile(join(this.dir, name), text);
  }

  async #listening(): Promise<void> {
    const look = async (): Promise<void> => {
      if (this.#child.exitCode !== null) return;
      const socket = connect(this.port, this.host);
      await once(socket, 'connect');
      socket.destroy();
    };
    await eventually(look, { what: 'nginx' });
    if (this.#child.exitCode !== null) throw new Error(`it ended with ${this.#child.exitCode}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.signal('SIGTERM');
    await this.#exit;
    await rm(this.dir, { recursive: true, force: true });
  }
}

export interface Check {
  readonly status: number | null;
  readonly output: string;
}

/** `start check`: renders, and has nginx check it. */
export async function checkNginx(binary: NginxBinary, settings: NginxSettings): Promise<Check> {
  const made = await make(binary, settings);
  const { status, stdout, stderr } = spawnSync('sh', [join(confDir, 'start'), 'check'], {
    env: made.env,
    encoding: 'utf8',
  });
  await rm(made.dir, { recursive: true, force: true });
  return { status, output: stdout + stderr };
}

interface Made {
  readonly dir: string;
  readonly host: string;
  readonly port: number;
  readonly tlsPort: number;
  readonly cert: string;
  readonly env: NodeJS.ProcessEnv;
}

async function make(binary: NginxBinary, settings: NginxSettings): Promise<Made> {
  const dir = await mkdtemp(join(tmpdir(), 'broker-nginx-run-'));
  // workers of a root's nginx are somebody else
  await chmod(dir, 0o755);
  const { key, cert } = selfSigned();
  await writeFile(join(dir, 'fullchain.pem'), cert);
  await writeFile(join(dir, 'privkey.pem'), key);
  await writeFile(join(dir, 'access.log'), '');
  const [port, tlsPort] = [await freePort(), await freePort()];
  const path = process.env['PATH'] ?? '';
  const env = {
    PATH: binary.dir === undefined ? path : `${binary.dir}:${path}`,
    CONF_DIR: confDir,
    RUN_DIR: join(dir, 'run'),
    TLS_DIR: dir,
    ACCESS_LOG: join(dir, 'access.log'),
    TLS: 'off',
    HTTP_PORT: String(port),
    HTTPS_PORT: String(tlsPort),
    HTTPS_PORT_PUBLISHED: String(tlsPort),
    ...settings,
  };
  const { LISTEN_ADDRESSES: host = '127.0.0.1', HTTP_PORT } = settings;
  return { dir, host: host.split(',')[0]!, port: Number(HTTP_PORT ?? port), tlsPort, cert, env };
}
