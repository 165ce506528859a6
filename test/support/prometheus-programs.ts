import { execFile } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { unpackFromSuite } from './debian-suite.ts';

const run = promisify(execFile);

/** One release each of Prometheus and of what belongs to it. */
export interface PrometheusPrograms {
  /** A folder for PATH, with `prometheus`, `promtool`, `alertmanager`, `amtool` and `blackbox_exporter`. */
  readonly dir: string;
  /** Of Prometheus, such as `3.5.3`. */
  readonly version: string;
}

/** The last Debian suite with Prometheus 2, and the first with 3: the stack may run either. */
const suites = (process.env['TEST_PROMETHEUS_SUITES'] ?? 'bookworm forky').split(' ');
/** From when on promtool is a package of its own. */
const withPromtool = ['bookworm', 'trixie'];

/** Unpacks them from Debian's packages; `remove` takes them away again. */
export async function unpackPrometheus(): Promise<{
  readonly releases: readonly PrometheusPrograms[];
  remove(): Promise<void>;
}> {
  const top = await mkdtemp(join(tmpdir(), 'broker-prometheus-'));
  const folders = [top];
  const remove = async () => {
    for (const folder of folders) await rm(folder, { recursive: true, force: true });
  };
  try {
    const releases: PrometheusPrograms[] = [];
    for (const suite of suites) {
      releases.push(await unpackRelease(join(top, suite), suite));
      folders.push(await bringTemplates(join(top, suite, 'root')));
    }
    return { releases, remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

async function unpackRelease(top: string, suite: string): Promise<PrometheusPrograms> {
  const own = withPromtool.includes(suite) ? [] : ['promtool'];
  const dir = await unpackFromSuite(top, {
    suite,
    packages: [
      'libc6',
      'prometheus',
      'prometheus-alertmanager',
      'prometheus-blackbox-exporter',
      ...own,
    ],
    programs: {
      prometheus: 'usr/bin/prometheus',
      promtool: 'usr/bin/promtool',
      alertmanager: 'usr/bin/prometheus-alertmanager',
      amtool: 'usr/bin/amtool',
      blackbox_exporter: 'usr/bin/prometheus-blackbox-exporter',
    },
  });
  const { stdout, stderr } = await run(join(dir, 'prometheus'), ['--version']);
  const [, version] = /version (\d+\.\d+\.\d+)/.exec(stdout + stderr) ?? [];
  if (version === undefined) throw new Error(`no version in ${stdout}${stderr}`);
  return { dir, version };
}

/**
 * Debian's Alertmanager looks for its templates below /usr/share, and no flag changes that. Nothing is installed here, so a folder with
 * a path of as many characters takes its place in the program.
 */
async function bringTemplates(root: string): Promise<string> {
  const built = '/usr/share/prometheus/alertmanager';
  const random = 6;
  const prefix = join(tmpdir(), 'broker-').padEnd(built.length - random, '-');
  if (prefix.length + random !== built.length) throw new Error(`${tmpdir()} is too long a path`);
  const folder = await mkdtemp(prefix);
  await cp(join(root, built), folder, { recursive: true });
  const program = join(root, 'usr/bin/prometheus-alertmanager');
  const bytes = await readFile(program, 'latin1');
  await writeFile(program, bytes.replaceAll(built, folder), 'latin1');
  return folder;
}
