import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { globSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { get } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { promisify } from 'node:util';

import { freePort } from './cluster.ts';
import { eventually } from './eventually.ts';
import { guardProcess, signalProcess } from './process-guard.ts';

const run = promisify(execFile);
const installMs = 300_000;
const tools = ['certbot', 'curl', 'openssl', 'python3'];

/** Installs from Debian what deploy/certificate calls, where it is missing. Returns why not, in words, when that cannot be done. */
export async function whyNoCertbot(): Promise<string | undefined> {
  const found = await Promise.all(tools.map(isThere));
  const missing = tools.filter((_, index) => !found[index]);
  if (missing.length === 0) return undefined;
  if (process.getuid?.() !== 0) return `${missing.join(', ')} missing, and only root may install`;
  if (!(await isThere('apt-get'))) return `${missing.join(', ')} missing, and there is no apt-get`;
  const settings = {
    timeout: installMs,
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  };
  await run('apt-get', ['-q', 'update'], settings);
  await run('apt-get', ['-qy', 'install', '--no-install-recommends', ...missing], settings);
  return undefined;
}

/** Returns why there is no Pebble, in words, where neither TEST_PEBBLE, PATH nor Debian has one. */
export async function whyNoPebble(): Promise<string | undefined> {
  if (process.env['TEST_PEBBLE'] !== undefined || (await isThere('pebble'))) return undefined;
  const ask = async (): Promise<boolean> =>
    succeeds('apt-get', ['download', '--print-uris', 'pebble']);
  // the lists of a new machine are empty
  if ((await ask()) || ((await succeeds('apt-get', ['-q', 'update'])) && (await ask())))
    return undefined;
  return 'there is no pebble: set TEST_PEBBLE to one';
}

async function isThere(command: string): Promise<boolean> {
  return succeeds('sh', ['-c', `command -v ${command}`]);
}

async function succeeds(command: string, args: readonly string[]): Promise<boolean> {
  return run(command, args, { timeout: installMs }).then(
    () => true,
    () => false,
  );
}

export interface Ended {
  readonly code: number | null;
  /** Standard output, then standard error. */
  readonly output: string;
}

/** Runs a command to its end, with PATH and these variables for an environment. */
export async function runToEnd(
  command: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<Ended> {
  const child = spawn(command, args, {
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const ended = once(child, 'close');
  const [out, err] = await Promise.all([text(child.stdout), text(child.stderr), ended]);
  return { code: child.exitCode, output: out + err };
}

/** An ACME server (RFC 8555) that asks for the challenge as that of Let's Encrypt does: Pebble, of the same authors. */
export interface Pebble extends AsyncDisposable {
  /** Its directory, for `--server`. */
  readonly directory: string;
  /** A file with the certificate that it serves itself with. */
  readonly caFile: string;
  /** The certificate that all which it issues goes back to. */
  readonly root: string;
}

export interface PebbleOptions {
  /** `address:port` of the name server that it asks. */
  readonly dns: string;
}

/**
 * Starts TEST_PEBBLE, or the `pebble` of PATH, or Debian's: fetched by apt and unpacked into a folder that is removed at the end. It asks
 * on port 80, and forgets everything when it ends.
 */
export async function startPebble({ dns }: PebbleOptions): Promise<Pebble> {
  const dir = await mkdtemp(join(tmpdir(), 'broker-pebble-'));
  const disposables = new AsyncDisposableStack();
  disposables.defer(async () => rm(dir, { recursive: true, force: true }));
  try {
    const command = await findPebble(dir);
    const caFile = join(dir, 'cert.pem');
    const privateKey = join(dir, 'key.pem');
    const ca = await makeCertificate(privateKey, caFile);
    const [port, managementPort] = [await freePort(), await freePort()];
    const pebble = {
      listenAddress: `127.0.0.1:${port}`,
      managementListenAddress: `127.0.0.1:${managementPort}`,
      certificate: caFile,
      privateKey,
      httpPort: 80,
      tlsPort: 443,
    };
    const config = join(dir, 'config.json');
    await writeFile(config, JSON.stringify({ pebble }));
    const child = spawn(command, ['-config', config, '-dnsserver', dns], {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: {
        ...process.env,
        // at once; no good nonce refused; an earlier validation hardly ever taken for a new order
        PEBBLE_VA_NOSLEEP: '1',
        PEBBLE_WFE_NONCEREJECT: '0',
        PEBBLE_AUTHZREUSE: '0',
      },
    });
    const exit = once(child, 'exit');
    const dismissGuard = guardProcess(child.pid!);
    disposables.defer(async () => {
      signalProcess(child.pid!, 'SIGTERM');
      await exit;
      dismissGuard();
    });
    const directory = `https://localhost:${port}/dir`;
    await eventually(async () => getText(directory, ca), { what: 'Pebble' });
    const root = await getText(`https://localhost:${managementPort}/roots/0`, ca);
    return {
      directory,
      caFile,
      root,
      [Symbol.asyncDispose]: async () => disposables.disposeAsync(),
    };
  } catch (error) {
    await disposables.disposeAsync();
    throw error;
  }
}

async function makeCertificate(keyFile: string, certFile: string): Promise<string> {
  const options = 'req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost'.split(' ');
  const alternative = ['-addext', 'subjectAltName=DNS:localhost'];
  await run('openssl', [...options, ...alternative, '-keyout', keyFile, '-out', certFile]);
  return readFile(certFile, 'utf8');
}

async function findPebble(dir: string): Promise<string> {
  const own = process.env['TEST_PEBBLE'];
  if (own !== undefined) return own;
  if (await isThere('pebble')) return 'pebble';
  await run('apt-get', ['-q', 'download', 'pebble'], { cwd: dir, timeout: installMs });
  const [packed] = globSync('pebble_*.deb', { cwd: dir });
  if (packed === undefined) throw new Error('apt-get downloaded no pebble');
  await run('dpkg-deb', ['-x', join(dir, packed), join(dir, 'root')]);
  return join(dir, 'root/usr/bin/pebble');
}

async function getText(url: string, ca: string): Promise<string> {
  const asked = get(url, { ca });
  const [response] = await once(asked, 'response');
  return text(response);
}
