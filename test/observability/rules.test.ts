/**
 * Goal: each alert fires when it should and not before, and says what an operator needs.
 *
 * Method: promtool of Prometheus 2 and of 3 runs the cases of test/observability/rules; a real Prometheus reads the project's
 * configuration, and tells what it has read.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { freePort } from '#test/support/cluster.ts';
import { startHttpProgram } from '#test/support/http-program.ts';

interface Rule {
  readonly type: 'alerting' | 'recording';
  readonly name: string;
  readonly query: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
}

const top = join(import.meta.dirname, '../..');
const cases = globSync('rules/*.yml', { cwd: import.meta.dirname }).toSorted();
const releases = inject('prometheus');
const textOf = (file: string): string => readFileSync(join(top, file), 'utf8');

describe.each(releases)('Prometheus $version', ({ dir }) => {
  function promtool(...args: string[]): { status: number | null; output: string } {
    const { status, stdout, stderr } = spawnSync(join(dir, 'promtool'), args, {
      encoding: 'utf8',
      cwd: top,
    });
    return { status, output: stdout + stderr };
  }

  test('takes the configuration and the rules', () => {
    const { status, output } = promtool('check', 'config', 'deploy/prometheus/prometheus.yml');
    expect(status, output).toBe(0);
    expect(output).toContain('9 rule files found');
  });

  test.each(cases)('%s', (file) => {
    const { status, output } = promtool('test', 'rules', join(import.meta.dirname, file));
    expect(status, output).toBe(0);
  });

  test('the blackbox exporter takes its modules', () => {
    const args = ['--config.check', '--config.file=deploy/prometheus/blackbox.yml'];
    const { status, stderr } = spawnSync(join(dir, 'blackbox_exporter'), args, {
      encoding: 'utf8',
      cwd: top,
    });
    expect(status, stderr).toBe(0);
  });
});

describe('what Prometheus has read', () => {
  const resources = new AsyncDisposableStack();
  let url: string;
  let rules: readonly Rule[];
  let alerts: readonly Rule[];

  beforeAll(async () => {
    const newest = releases.at(-1)!;
    const data = await mkdtemp(join(tmpdir(), 'broker-rules-'));
    resources.defer(async () => rm(data, { recursive: true, force: true, maxRetries: 5 }));
    const address = `127.0.0.1:${await freePort()}`;
    url = `http://${address}`;
    resources.use(
      await startHttpProgram(join(newest.dir, 'prometheus'), {
        args: [
          `--config.file=${join(top, 'deploy/prometheus/prometheus.yml')}`,
          `--storage.tsdb.path=${data}`,
          `--web.listen-address=${address}`,
          '--enable-feature=exemplar-storage',
        ],
        readyUrl: `${url}/-/ready`,
      }),
    );
    const response = await fetch(`${url}/api/v1/rules`);
    const answer = (await response.json()) as { data: { groups: readonly { rules: Rule[] }[] } };
    rules = answer.data.groups.flatMap((group) => group.rules);
    alerts = rules.filter(({ type }) => type === 'alerting');
  });
  afterAll(async () => resources.disposeAsync());

  test('each expression can be evaluated', async () => {
    expect(rules.length).toBeGreaterThan(80);
    const wrong: string[] = [];
    for (const { name, query } of rules) {
      const response = await fetch(
        `${url}/api/v1/query?${new URLSearchParams({ query }).toString()}`,
      );
      if (!response.ok) wrong.push(`${name}: ${await response.text()}`);
    }
    expect(wrong).toEqual([]);
  });

  test('each alert says how bad, what, and where to read on', () => {
    const faults = alerts.flatMap(({ name, labels, annotations }) => {
      const {
        summary = '',
        description = '',
        runbook_url: page,
        dashboard_url: board,
      } = annotations;
      const runbook = `{{ $externalLabels.runbook_base }}deploy/runbook.md#${name.toLowerCase()}`;
      const [, uid] =
        /^\{\{ \$externalLabels\.grafana_base \}\}\/d\/([\w-]+)$/.exec(board ?? '') ?? [];
      const checks = {
        name: /^Broker([A-Z][a-z]+)+$/.test(name),
        severity: ['critical', 'warning', 'info'].includes(labels['severity'] ?? ''),
        summary: summary !== '',
        description: name === 'BrokerWatchdog' || /\{\{ \$(value|labels)/.test(description),
        runbook_url: page === runbook,
        dashboard_url: existsSync(join(top, `deploy/grafana/dashboards/${uid}.json`)),
      };
      return Object.entries(checks).flatMap(([what, isRight]) =>
        isRight ? [] : `${name}: ${what}`,
      );
    });
    expect(faults).toEqual([]);
  });

  test('each alert has its paragraph in the runbook, and each paragraph its alert', () => {
    const headings = [...textOf('deploy/runbook.md').matchAll(/^## (Broker\w+)$/gm)];
    const names = new Set(alerts.map(({ name }) => name));
    expect(headings.map(([, name]) => name)).toEqual([...names].toSorted());
  });

  test('each alert has a case in which it fires, by severity, and one in which it does not', () => {
    const texts = cases.map((file) => readFileSync(join(import.meta.dirname, file), 'utf8'));
    const expectations = texts
      .flatMap((text) => text.split(/^ {6}- (?=eval_time:)/m))
      .map((text) => ({ name: /alertname: (\w+)/.exec(text)?.[1], text }));
    const missing = alerts.flatMap(({ name, labels }) => {
      const own = expectations.filter((each) => each.name === name);
      const fires = own.some(({ text }) => text.includes(`severity: '${labels['severity']}'`));
      const isQuiet = own.some(({ text }) => text.includes('exp_alerts: []'));
      const isAlwaysThere = name === 'BrokerWatchdog';
      return fires && (isQuiet || isAlwaysThere) ? [] : `${name} ${labels['severity']}`;
    });
    expect(missing).toEqual([]);
  });

  test('what is asked of the leader alone is marked, so that it is quiet while nobody leads', () => {
    const ofLeader =
      /\b(subscription|topic|duty|broker):(waiting|oldest|dead_letters|backlog|last_success|database)|broker_(database_|partitions|duty_)/;
    const wrong = alerts.filter(
      ({ query, labels }) => ofLeader.test(query) !== (labels['source'] === 'leader'),
    );
    expect(wrong.map(({ name }) => name)).toEqual([]);
  });
});
