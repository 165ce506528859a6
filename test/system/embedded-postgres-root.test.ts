/**
 * Goal: PostgreSQL, which refuses root, runs for root by itself, with as little privilege as the place allows.
 * Method: each way is forced in turn; an ordinary user is the account `nobody`. Only root can test this.
 */
import { spawnSync } from 'node:child_process';
import { chmod, chown, mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import {
  DataDirLab,
  isRunning,
  killOwner,
  ownerProgram,
  readRow,
  stopOwner,
  writeRow,
} from '../support/embedded-postgres.ts';

const NOBODY = { uid: 65_534, gid: 65_534 };
const isRoot = process.getuid?.() === 0;

let lab: DataDirLab;

beforeEach(async () => {
  lab = await DataDirLab.open();
});

afterEach(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Whether an account without rights can run this checkout. */
function nobodyCanReadUs(): boolean {
  const options = { ...NOBODY, cwd: '/' };
  return spawnSync(process.execPath, ['--check', ownerProgram], options).status === 0;
}

describe('as root', () => {
  beforeEach(({ skip }) => {
    skip(!isRoot, 'only root has to find another way');
  });

  for (const strategy of ['user-namespace', 'other-user'] as const) {
    test(`${strategy}: starts, restarts and stops, also below a directory that only root may enter`, async ({
      skip,
    }) => {
      const tried = spawnSync('/bin/sh', ['-c', 'unshare --user --map-user=65534 true']);
      skip(
        strategy === 'user-namespace' && tried.status !== 0,
        'user namespaces are refused on this machine',
      );
      await chmod(lab.scratch, 0o700);
      const first = await lab.start({ rootStrategies: [strategy] });
      expect(first.strategy).toBe(strategy);
      const [line] =
        (await readFile(`/proc/${first.pid}/status`, 'utf8')).match(/^CapEff.*$/m) ?? [];
      // Nothing, or as another user the right to enter directories (CAP_DAC_READ_SEARCH).
      expect(line).toMatch(strategy === 'user-namespace' ? /\t0{16}$/ : /\t0{15}4$/);
      await writeRow(first.url);
      await first.stop();
      const second = await lab.start({ rootStrategies: [strategy] });
      expect(await readRow(second.url)).toBe(42);
    });
  }

  test('other-user has no capability at all where it may enter everything', async ({ skip }) => {
    skip(!nobodyCanReadUs(), 'the checkout is below a directory that only root may enter');
    const postgres = await lab.start({ rootStrategies: ['other-user'] });
    expect(await readFile(`/proc/${postgres.pid}/status`, 'utf8')).toMatch(/^CapEff:\t0{16}$/m);
    expect((await stat(join(lab.dataDir, 'postgres'))).uid).not.toBe(0);
  });

  test('a cluster stays with the user who has it, and one that is given to root works too', async () => {
    const first = await lab.start({ rootStrategies: ['other-user'] });
    await writeRow(first.url);
    await first.stop();
    const second = await lab.start();
    expect(second.strategy).toBe('other-user');
    await second.stop();
    spawnSync('chown', ['-R', '0:0', join(lab.dataDir, 'postgres')]);
    const third = await lab.start();
    expect(await readRow(third.url)).toBe(42);
  });

  test('an orphan that runs as another user is stopped too', async () => {
    const { child, info } = await lab.startOwner({ rootStrategies: ['other-user'] });
    await writeRow(info.url);
    await killOwner(child);
    const second = await lab.start();
    expect(isRunning(info.pid)).toBe(false);
    expect(await readRow(second.url)).toBe(42);
  });

  test('where nothing works the error names DATABASE_URL', async () => {
    await expect(lab.start({ rootStrategies: [] })).rejects.toThrow('set DATABASE_URL');
  });

  test('an ordinary user needs none of this, and root can go on with the data of that user', async ({
    skip,
  }) => {
    skip(!nobodyCanReadUs(), 'the checkout is below a directory that only root may enter');
    await mkdir(lab.dataDir);
    await chown(lab.dataDir, NOBODY.uid, NOBODY.gid);
    const { child, info } = await lab.startOwner({}, NOBODY);
    expect(info).toMatchObject({ strategy: 'same-user' });
    await writeRow(info.url);
    await stopOwner(child);

    const byRoot = await lab.start();
    expect(byRoot.strategy).toBe('other-user');
    expect(await readRow(byRoot.url)).toBe(42);
    await byRoot.stop();

    const again = await lab.startOwner({}, NOBODY);
    expect(again.info.error).toBe(undefined);
    expect(await readRow(again.info.url)).toBe(42);
  });
});
