import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { unpackFromSuite } from './debian-suite.ts';

const run = promisify(execFile);

/** The first that has all that deploy/nginx/nginx.conf uses. */
const oldest = [1, 27, 4] as const;

/** The first Debian suite whose nginx is new enough is forky. */
const suite = process.env['TEST_NGINX_SUITE'] ?? 'forky';
const packages = 'nginx libc6 libcrypt1 libpcre2-8-0 libssl3t64 libzstd1 zlib1g'.split(' ');

export interface NginxBinary extends AsyncDisposable {
  /** A folder for PATH, with `nginx` in it; undefined when the machine's own does. */
  readonly dir: string | undefined;
  readonly version: string;
}

/**
 * The machine's own nginx when it is new enough, else that of a newer Debian suite, unpacked into a folder that is removed at the end.
 */
export async function findNginx(): Promise<NginxBinary> {
  const own = await versionOf('nginx').catch(() => undefined);
  if (own !== undefined && isNewEnough(own)) {
    return { dir: undefined, version: own, [Symbol.asyncDispose]: async () => undefined };
  }
  const top = await mkdtemp(join(tmpdir(), 'broker-nginx-'));
  try {
    const programs = { nginx: 'usr/sbin/nginx' };
    const dir = await unpackFromSuite(top, { suite, packages, programs });
    const version = await versionOf(join(dir, 'nginx'));
    if (!isNewEnough(version)) throw new Error(`${suite} has nginx ${version} only`);
    return {
      dir,
      version,
      [Symbol.asyncDispose]: async () => rm(top, { recursive: true, force: true }),
    };
  } catch (error) {
    await rm(top, { recursive: true, force: true });
    throw error;
  }
}

async function versionOf(command: string): Promise<string> {
  const { stderr } = await run(command, ['-v']);
  const [, version] = /nginx\/(\d+\.\d+\.\d+)/.exec(stderr) ?? [];
  if (version === undefined) throw new Error(`no version in ${stderr}`);
  return version;
}

function isNewEnough(version: string): boolean {
  const parts = version.split('.').map(Number);
  const differs = oldest.findIndex((part, index) => part !== parts[index]);
  return differs === -1 || (parts[differs] ?? 0) > (oldest[differs] ?? 0);
}
