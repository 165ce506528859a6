import { execFile } from 'node:child_process';
import { chmod, cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

import { endOf, type Ended } from './docker.ts';

const run = promisify(execFile);
const top = join(import.meta.dirname, '../..');

/** What was built for the release, as far as the scripts look at it. */
export const releaseImage = `registry.example/team/event-broker@sha256:${'ab'.repeat(32)}`;

/** Of the release 1.2.3. */
export const changelog = `# Changelog

## Unreleased

## 1.2.3 - 2026-12-24

### Added

- A thing.

### Fixed

- Another.

## 1.2.2 - 2026-11-01

- Older.
`;
/** What stands in for deploy/swarm/deploy of the release. */
const recorder = `#!/usr/bin/env bash
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
printf '%s\\n' "arguments $*" "image $BROKER_IMAGE" "settings $(head -1 "$top/.env.prod")" "secret $(cat "$top/secrets/key")" >>"$top/../../record"
[[ ! -e $top/../../fail ]] || { echo 'the new version did not hold' >&2; exit 1; }
`;

/** A folder that has the scripts of deploy/release and what they look at, ready for the release 1.2.3. */
export class ReleaseRepository implements AsyncDisposable {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async create(): Promise<ReleaseRepository> {
    const dir = await mkdtemp(join(tmpdir(), 'event-broker-release-'));
    await cp(join(top, 'deploy/release'), join(dir, 'deploy/release'), { recursive: true });
    const repository = new ReleaseRepository(dir);
    const packageJson = JSON.stringify({ name: 'event-broker', version: '1.2.3' });
    await repository.put('package.json', packageJson);
    await repository.put('package-lock.json', packageJson);
    await repository.put('CHANGELOG.md', changelog);
    await repository.put('docker-compose.yml', 'services: {}\n');
    await repository.put('docker-compose.prod.yml', 'services: {}\n');
    await repository.put('.env.example', '');
    await repository.put('deploy/swarm/deploy', recorder, 0o755);
    return repository;
  }

  async put(file: string, text: string, mode = 0o644): Promise<void> {
    const path = join(this.dir, file);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, text);
    await chmod(path, mode);
  }

  /** Runs a script of deploy/release to its end. */
  async call(name: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Ended> {
    const path = `${dirname(process.execPath)}:${process.env['PATH']}`;
    const command = [join(this.dir, 'deploy/release', name), ...args];
    return endOf(command, { env: { PATH: path, HOME: this.dir, ...env } });
  }

  async commit(): Promise<void> {
    const author = ['-c', 'user.name=test', '-c', 'user.email=test@localhost'];
    for (const args of [
      ['init', '--quiet'],
      ['add', '.'],
      ['commit', '--quiet', '-m', 'release'],
    ])
      await run('git', [...author, ...args], { cwd: this.dir });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.dir, { recursive: true, force: true });
  }
}
