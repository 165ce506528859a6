import { execFile } from 'node:child_process';
import { existsSync, globSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const downloadMs = 120_000;

/** The first that has all that deploy/nginx/nginx.conf uses. */
const oldest = [1, 27, 4] as const;

/** The first Debian suite whose nginx is new enough is forky. */
const suite = process.env['TEST_NGINX_SUITE'] ?? 'forky';
const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
const packages = 'nginx libc6 libcrypt1 libpcre2-8-0 libssl3t64 libzstd1 zlib1g'.split(' ');

export interface NginxBinary extends AsyncDisposable {
  /** A folder for PATH, with `nginx` in it; undefined when the machine's own does. */
  readonly dir: string | undefined;
  readonly version: string;
}

/**
 * The machine's own nginx when it is new enough, else that of a newer Debian suite: fetched by apt from the mirror that the machine uses,
 * unpacked with its libraries into a folder that is removed at the end. Nothing is installed, and nobody needs to be root.
 */
export async function findNginx(): Promise<NginxBinary> {
  const own = await versionOf('nginx').catch(() => undefined);
  if (own !== undefined && isNewEnough(own)) {
    return { dir: undefined, version: own, [Symbol.asyncDispose]: async () => undefined };
  }
  const top = await mkdtemp(join(tmpdir(), 'broker-nginx-'));
  try {
    const dir = await unpack(top);
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

async function unpack(top: string): Promise<string> {
  const [apt, packed, root, dir] = ['apt', 'packed', 'root', 'bin'].map((name) => join(top, name));
  if (!apt || !packed || !root || !dir) throw new Error('no folder');
  for (const each of [join(apt, 'lists/partial'), join(apt, 'cache/archives/partial'), packed, dir])
    await mkdir(each, { recursive: true });
  const options = [
    `Dir::Etc::sourcelist=${apt}/newer.sources`,
    'Dir::Etc::sourceparts=-',
    `Dir::State::lists=${apt}/lists`,
    `Dir::Cache=${apt}/cache`,
  ].flatMap((option) => ['-o', option]);
  await writeFile(join(apt, 'newer.sources'), await sourceOfNewerSuite());
  const settings = { cwd: packed, timeout: downloadMs };
  await run('apt-get', [...options, '-q', 'update'], settings);
  await run('apt-get', [...options, '-q', 'download', ...packages], settings);
  for (const file of globSync('*.deb', { cwd: packed }))
    await run('dpkg-deb', ['-x', join(packed, file), root]);
  return wrap(root, dir);
}

/** As the machine's first Debian source, with another suite. */
async function sourceOfNewerSuite(): Promise<string> {
  const format = '$(REPO_URI) $(COMPONENT)';
  const { stdout } = await run('apt-get', ['indextargets', '--format', format]);
  const [, uri] = /^(\S+\/debian\/?) main$/m.exec(stdout) ?? [];
  if (uri === undefined) throw new Error('apt has no Debian source whose mirror could be used');
  const signedBy = existsSync(keyring) ? [`Signed-By: ${keyring}`] : [];
  const lines = ['Types: deb', `URIs: ${uri}`, `Suites: ${suite}`, 'Components: main'];
  return [...lines, 'Targets: Packages', ...signedBy, ''].join('\n');
}

/** The newer suite's own loader starts it with the newer suite's own libraries. */
async function wrap(root: string, dir: string): Promise<string> {
  const [loader] = globSync('{usr/lib64,usr/lib,usr/lib/*}/ld-linux*.so.*', { cwd: root });
  const [libc] = globSync('usr/lib/*/libc.so.6', { cwd: root });
  if (loader === undefined || libc === undefined) throw new Error(`no loader in ${root}`);
  const libraries = join(root, dirname(libc));
  const lines = [
    '#!/bin/sh',
    `exec ${join(root, loader)} --library-path ${libraries} ${root}/usr/sbin/nginx "$@"`,
    '',
  ];
  await writeFile(join(dir, 'nginx'), lines.join('\n'));
  await chmod(join(dir, 'nginx'), 0o755);
  return dir;
}
