import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { inject } from 'vitest';

const run = promisify(execFile);

export interface ChangedImage {
  /** What it is made of; on each host already. */
  readonly from: string;
  /** Files that are put over those of the image, by their path in it (`/app/…`), with their text. */
  readonly files?: Readonly<Record<string, string>>;
  /** Further lines of its Dockerfile. */
  readonly instructions?: readonly string[];
}

/** A folder that a changed image can be built of. */
export async function makeContext(parent: string, change: ChangedImage): Promise<string> {
  const { from, files = {}, instructions = [] } = change;
  const context = await mkdtemp(join(parent, 'build-'));
  await mkdir(join(context, 'over'));
  for (const [path, text] of Object.entries(files)) {
    const file = join(context, 'over', path);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, text);
  }
  const lines = [`FROM ${from}`, 'COPY over/ /', ...instructions, ''];
  await writeFile(join(context, 'Dockerfile'), lines.join('\n'));
  return context;
}

/** A file with these images, made once in a run of tests. */
export async function archiveOf(names: readonly string[]): Promise<string> {
  const { host, scratch } = inject('docker');
  const hash = createHash('sha256').update(names.join(' ')).digest('hex').slice(0, 16);
  const archive = join(scratch, `images-${hash}.tar`);
  if (existsSync(archive)) return archive;
  await run('docker', ['--host', host, 'save', '--output', `${archive}.part`, ...names]);
  await rename(`${archive}.part`, archive);
  return archive;
}
