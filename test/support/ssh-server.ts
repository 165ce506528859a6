import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { eventually } from './eventually.ts';

const run = promisify(execFile);
const runDir = '/run/sshd';

/** A real sshd on a port of 127.0.0.1, for whoever runs the tests and one key. */
export class SshServer implements AsyncDisposable {
  readonly port: number;
  readonly #dir: string;
  readonly #process: ChildProcess;
  readonly #madeRunDir: boolean;

  private constructor(fields: {
    readonly port: number;
    readonly dir: string;
    readonly process: ChildProcess;
    readonly madeRunDir: boolean;
  }) {
    this.port = fields.port;
    this.#dir = fields.dir;
    this.#process = fields.process;
    this.#madeRunDir = fields.madeRunDir;
  }

  static async start(): Promise<SshServer> {
    const dir = await mkdtemp(join(tmpdir(), 'event-broker-ssh-'));
    for (const name of ['host', 'user', 'other'])
      await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, name)]);
    const port = await freePort();
    const config = [
      `ListenAddress 127.0.0.1:${port}`,
      `HostKey ${dir}/host`,
      `AuthorizedKeysFile ${dir}/user.pub`,
      'PidFile none',
      'StrictModes no',
      'PermitRootLogin prohibit-password',
      'PasswordAuthentication no',
      'KbdInteractiveAuthentication no',
    ];
    await writeFile(join(dir, 'config'), `${config.join('\n')}\n`);
    // Of root it asks for this folder, which the service of the package makes.
    const madeRunDir = process.getuid?.() === 0 && !existsSync(runDir);
    if (madeRunDir) await mkdir(runDir, { mode: 0o755 });
    const child = spawn('/usr/sbin/sshd', ['-D', '-e', '-f', join(dir, 'config')], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let log = '';
    child.stderr.on('data', (text: Buffer) => (log += text.toString()));
    const server = new SshServer({ port, dir, process: child, madeRunDir });
    await eventually(() => {
      if (!log.includes('Server listening')) throw new Error(log);
    });
    return server;
  }

  /** The private key that is let in. */
  get userKey(): string {
    return readFileSync(join(this.#dir, 'user'), 'utf8');
  }

  /** A line of known_hosts: with the server's key, or with another one. */
  knownHost(key: 'host' | 'other'): string {
    return `[127.0.0.1]:${this.port} ${readFileSync(join(this.#dir, `${key}.pub`), 'utf8')}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = new Promise((resolve) => this.#process.once('exit', resolve));
    if (this.#process.kill()) await ended;
    if (this.#madeRunDir) await rm(runDir, { recursive: true });
    await rm(this.#dir, { recursive: true });
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
