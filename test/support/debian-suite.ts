import { execFile } from 'node:child_process';
import { existsSync, globSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const downloadMs = 240_000;
const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';

export interface UnpackOptions {
  /** Such as `forky`. */
  readonly suite: string;
  /** What holds the programs, and the libraries that they need: libc6 for one. */
  readonly packages: readonly string[];
  /** Paths in the packages, by the names that the programs get. */
  readonly programs: Readonly<Record<string, string>>;
}

/**
 * Programs of another Debian suite than the machine's own: fetched by apt from the mirror that the machine uses, and unpacked below
 * `top`. Nothing is installed, and nobody needs to be root. Returns a folder for PATH.
 */
export async function unpackFromSuite(top: string, options: UnpackOptions): Promise<string> {
  const { suite, packages, programs } = options;
  const [apt, packed, root, dir] = ['apt', 'packed', 'root', 'bin'].map((name) => join(top, name));
  if (!apt || !packed || !root || !dir) throw new Error('no folder');
  for (const each of [join(apt, 'lists/partial'), join(apt, 'cache/archives/partial'), packed, dir])
    await mkdir(each, { recursive: true });
  const settings = { cwd: packed, timeout: downloadMs };
  const aptOptions = [
    `Dir::Etc::sourcelist=${apt}/suite.sources`,
    'Dir::Etc::sourceparts=-',
    `Dir::State::lists=${apt}/lists`,
    `Dir::Cache=${apt}/cache`,
  ].flatMap((option) => ['-o', option]);
  await writeFile(join(apt, 'suite.sources'), await sourceOf(suite));
  await run('apt-get', [...aptOptions, '-q', 'update'], settings);
  await run('apt-get', [...aptOptions, '-q', 'download', ...packages], settings);
  for (const file of globSync('*.deb', { cwd: packed }))
    await run('dpkg-deb', ['-x', join(packed, file), root]);
  for (const [name, path] of Object.entries(programs)) await wrap(root, path, join(dir, name));
  return dir;
}

/** As the machine's first Debian source, with another suite. */
async function sourceOf(suite: string): Promise<string> {
  const format = '$(REPO_URI) $(COMPONENT)';
  const { stdout } = await run('apt-get', ['indextargets', '--format', format]);
  const [, uri] = /^(\S+\/debian\/?) main$/m.exec(stdout) ?? [];
  if (uri === undefined) throw new Error('apt has no Debian source whose mirror could be used');
  const signedBy = existsSync(keyring) ? [`Signed-By: ${keyring}`] : [];
  const lines = ['Types: deb', `URIs: ${uri}`, `Suites: ${suite}`, 'Components: main'];
  return [...lines, 'Targets: Packages', ...signedBy, ''].join('\n');
}

/** The suite's own loader starts it with the suite's own libraries. */
async function wrap(root: string, path: string, target: string): Promise<void> {
  const [loader] = globSync('{usr/,}{lib64,lib,lib/*}/ld-linux*.so.*', { cwd: root });
  const [libc] = globSync('{usr/,}lib/*/libc.so.6', { cwd: root });
  if (loader === undefined || libc === undefined) throw new Error(`no loader in ${root}`);
  const libraries = join(root, dirname(libc));
  const command = `${join(root, loader)} --library-path ${libraries} ${join(root, path)}`;
  await writeFile(target, `#!/bin/sh\nexec ${command} "$@"\n`);
  await chmod(target, 0o755);
}
