import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { globSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';

import { freePort } from './cluster.ts';
import { eventually } from './eventually.ts';
import { guardProcess } from './process-guard.ts';

const deploy = join(import.meta.dirname, '../../deploy/prometheus');

export interface PrometheusOptions {
  /** The program (`prometheus`). */
  readonly command?: string;
  /** Base URLs of what is scraped, by the name of the job. */
  readonly jobs: Readonly<Record<string, readonly string[]>>;
}

export interface Series {
  readonly metric: Readonly<Record<string, string>>;
  /** Of an instant query. */
  readonly value?: readonly [number, string];
  /** Of a query over a range. */
  readonly values?: readonly (readonly [number, string])[];
}

export interface Exemplars {
  readonly seriesLabels: Readonly<Record<string, string>>;
  readonly exemplars: readonly { readonly labels: Readonly<Record<string, string>> }[];
}

/** Since when, in seconds since 1970; until now. */
export interface Since {
  readonly start: number;
}

/**
 * A real Prometheus that scrapes real processes each second, with the rules and alerts of deploy/prometheus. All of them are evaluated
 * each second, those too that the stack evaluates each five minutes: nobody waits so long for a first sample.
 */
export class PrometheusServer implements AsyncDisposable {
  readonly url: string;
  readonly #dir: string;
  readonly #child: ChildProcess;
  readonly #targets: number;
  readonly #exited: Promise<unknown>;

  private constructor(options: { url: string; dir: string; child: ChildProcess; targets: number }) {
    this.url = options.url;
    this.#dir = options.dir;
    this.#child = options.child;
    this.#targets = options.targets;
    this.#exited = once(options.child, 'close');
  }

  static async start({ command = 'prometheus', jobs }: PrometheusOptions) {
    const dir = await mkdtemp(join(tmpdir(), 'broker-prometheus-'));
    await writeConfiguration(dir, jobs);
    const address = `127.0.0.1:${await freePort()}`;
    const child = spawn(
      command,
      [
        `--config.file=${join(dir, 'prometheus.yml')}`,
        `--storage.tsdb.path=${join(dir, 'data')}`,
        `--web.listen-address=${address}`,
        '--enable-feature=exemplar-storage',
        '--log.level=warn',
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    if (child.pid === undefined) throw new Error(`${command} cannot be run`);
    const dismissGuard = guardProcess(child.pid);
    child.once('close', dismissGuard);
    let output = '';
    child.stderr?.on('data', (chunk: Buffer) => void (output += chunk.toString()));
    const targets = Object.values(jobs).flat().length;
    const server = new PrometheusServer({ url: `http://${address}`, dir, child, targets });
    try {
      await eventually(
        async () => {
          if (child.exitCode !== null) return;
          const { ok } = await fetch(`${server.url}/-/ready`);
          if (!ok) throw new Error(output);
        },
        { timeoutMs: 60_000, what: 'Prometheus' },
      );
      if (child.exitCode !== null) throw new Error(`${command} ended: ${output}`);
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** What a query says now. */
  async query(query: string): Promise<readonly Series[]> {
    const { result } = await this.#get<{ result: readonly Series[] }>('query', { query });
    return result;
  }

  /** What a query says over a range, at up to 300 points. */
  async range(query: string, { start }: Since): Promise<readonly Series[]> {
    const end = Date.now() / 1000;
    const step = Math.max(1, Math.ceil((end - start) / 300));
    const { result } = await this.#get<{ result: readonly Series[] }>('query_range', {
      query,
      start,
      end,
      step,
    });
    return result;
  }

  async exemplars(query: string, { start }: Since): Promise<readonly Exemplars[]> {
    return this.#get('query_exemplars', { query, start, end: Date.now() / 1000 });
  }

  /** The values of a label of the series that are selected. */
  async labelValues(selector: string, label: string, { start }: Since): Promise<readonly string[]> {
    return this.#get(`label/${label}/values`, { 'match[]': selector, start });
  }

  /** Waits until everything has been scraped after this call. */
  async hasScraped(): Promise<void> {
    const calledAt = Date.now() / 1000;
    const look = async (): Promise<void> => {
      const targets = await this.query('timestamp(up) and up == 1');
      const late = targets.filter(({ value }) => Number(value?.[1]) <= calledAt);
      if (targets.length < this.#targets || late.length > 0) {
        throw new Error(`${targets.length - late.length} of ${this.#targets} targets`);
      }
    };
    await eventually(look, { timeoutMs: 60_000, what: 'a scrape of everything' });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exited;
    await rm(this.#dir, { recursive: true, force: true, maxRetries: 5 });
  }

  async #get<Data>(path: string, parameters: Readonly<Record<string, string | number>>) {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) search.append(name, String(value));
    const response = await fetch(`${this.url}/api/v1/${path}?${search.toString()}`);
    const answer = (await response.json()) as { data: Data; error?: string };
    if (!response.ok) throw new Error(`${answer.error}: ${search.toString()}`);
    return answer.data;
  }
}

async function writeConfiguration(dir: string, jobs: PrometheusOptions['jobs']): Promise<void> {
  await mkdir(join(dir, 'rules'));
  for (const file of globSync('{rules,alerts}/*.yml', { cwd: deploy })) {
    const text = await readFile(join(deploy, file), 'utf8');
    const name = file.replaceAll('/', '-');
    await writeFile(join(dir, 'rules', basename(name)), text.replaceAll(/^ +interval: .*\n/gm, ''));
  }
  const scrapes = Object.entries(jobs).map(([job, urls]) => ({
    job_name: job,
    metrics_path: '/api/metrics',
    static_configs: [{ targets: urls.map((url) => new URL(url).host) }],
  }));
  // JSON is YAML
  const configuration = {
    global: { scrape_interval: '1s', scrape_timeout: '1s', evaluation_interval: '1s' },
    rule_files: ['rules/*.yml'],
    scrape_configs: scrapes,
  };
  await writeFile(join(dir, 'prometheus.yml'), JSON.stringify(configuration));
}
