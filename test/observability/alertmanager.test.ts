/**
 * Goal: who has to hear of an alert does, and hears of one thing once.
 *
 * Method: deploy/alertmanager/start makes the configuration; amtool says which route an alert takes; a real Alertmanager is given alerts
 * by its API, says which of them it holds back, and sends the others to a server of ours. The last test begins at Prometheus.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test } from 'vitest';

import { inhibitions, type Labels } from '#test/support/alert-inhibitions.ts';
import {
  receiversAt,
  startAlertReceiver,
  type AlertReceiver,
  type SentAlerts,
} from '#test/support/alert-receiver.ts';
import { freePort } from '#test/support/cluster.ts';
import { eventually } from '#test/support/eventually.ts';
import { startHttpProgram, type HttpProgram } from '#test/support/http-program.ts';

const top = join(import.meta.dirname, '../..');
const conf = join(top, 'deploy/alertmanager');

describe.each(inject('prometheus'))('with Alertmanager beside Prometheus $version', ({ dir }) => {
  const resources = new AsyncDisposableStack();
  let scratch: string;
  let receiver: AlertReceiver;
  let alertmanager: HttpProgram;
  let host: string;

  const environment = (receivers?: string): Record<string, string> => ({
    PATH: `${dir}${delimiter}${process.env['PATH']}`,
    CONF_DIR: conf,
    RUN_DIR: mkdtempSync(join(scratch, 'run-')),
    ...(receivers === undefined ? {} : { RECEIVERS_FILE: receivers }),
  });

  function check(receivers?: string): { status: number | null; output: string } {
    const { status, stdout, stderr } = spawnSync('sh', [join(conf, 'start'), 'check'], {
      env: environment(receivers),
      encoding: 'utf8',
    });
    return { status, output: stdout + stderr };
  }

  function file(name: string, text: string): string {
    const path = join(scratch, name);
    writeFileSync(path, text);
    return path;
  }

  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'broker-alertmanager-'));
    resources.defer(async () => rm(scratch, { recursive: true, force: true, maxRetries: 5 }));
    receiver = resources.use(await startAlertReceiver());
    host = `127.0.0.1:${await freePort()}`;
    const args = [
      join(conf, 'start'),
      `--storage.path=${join(scratch, 'data')}`,
      `--web.listen-address=${host}`,
      '--cluster.listen-address=',
    ];
    alertmanager = resources.use(
      await startHttpProgram('sh', {
        args,
        env: environment(file('receivers.yml', receiversAt(receiver.url))),
        readyUrl: `http://${host}/-/ready`,
      }),
    );
  });
  afterAll(async () => resources.disposeAsync());

  test('without receivers it says that nobody is told; with them it does not', () => {
    const without = check();
    expect(without.status, without.output).toBe(0);
    expect(without.output).toContain('SENT TO NOBODY');
    expect(alertmanager.stderr()).not.toContain('SENT TO NOBODY');
  });

  test('the receivers that the README shows are taken', () => {
    const readme = readFileSync(join(top, 'deploy/prometheus/README.md'), 'utf8');
    const [, shown = ''] = /^```yaml\n(receivers:\n[\s\S]*?)^```$/m.exec(readme) ?? [];
    const { status, output } = check(file('shown.yml', shown));
    expect(status, output).toBe(0);
    expect(output).not.toContain('SENT TO NOBODY');
  });

  test.each([
    ['missing.yml', undefined, 'cannot read'],
    ['empty.yml', 'route: {}\n', "has no line 'receivers:'"],
    [
      'three.yml',
      receiversAt('http://127.0.0.1:9').replace('name: note', 'name: notes'),
      "has no receiver 'note'",
    ],
  ])('a file of receivers that cannot do is refused: %s', (name, text, message) => {
    const path = text === undefined ? join(scratch, name) : file(name, text);
    const { status, output } = check(path);
    expect(output).toContain(message);
    expect(output).toContain('RECEIVERS_FILE');
    expect(status).toBe(64);
  });

  test.each([
    ['page', { alertname: 'BrokerNoLeader', severity: 'critical' }],
    ['ticket', { alertname: 'BrokerOldestWaiting', severity: 'warning', source: 'leader' }],
    ['note', { alertname: 'BrokerSpansDropped', severity: 'info' }],
    ['watchdog', { alertname: 'BrokerWatchdog', severity: 'info' }],
    ['ticket', { alertname: 'SomethingElse', severity: 'unheard' }],
  ])('the route leads to %s: %j', (name, labels) => {
    const { status, stdout, stderr } = spawnSync(
      join(dir, 'amtool'),
      [
        'config',
        'routes',
        'test',
        `--config.file=${join(conf, 'alertmanager.yml')}`,
        `--verify.receivers=${name}`,
        ...Object.entries(labels).map(([label, value]) => `${label}=${value}`),
      ],
      { encoding: 'utf8' },
    );
    expect(status, stdout + stderr).toBe(0);
  });

  async function post(alerts: readonly Labels[], isOver: boolean): Promise<void> {
    const now = Date.now();
    const body = alerts.map((labels) => ({
      labels,
      startsAt: new Date(now - 60_000).toISOString(),
      endsAt: new Date(isOver ? now - 1 : now + 600_000).toISOString(),
    }));
    const response = await fetch(`http://${host}/api/v2/alerts`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    expect(response.status, await response.text()).toBe(200);
  }

  /** Whether each of these alerts is held back. */
  async function heldBack(alerts: readonly Labels[]): Promise<boolean[]> {
    const response = await fetch(`http://${host}/api/v2/alerts`);
    const known = (await response.json()) as {
      labels: Labels;
      status: { state: string; inhibitedBy: string[] };
    }[];
    return alerts.map((labels) => {
      const wanted = Object.entries(labels);
      const found = known.find((each) =>
        wanted.every(([name, value]) => each.labels[name] === value),
      );
      if (found === undefined) throw new Error(`it does not know ${JSON.stringify(labels)}`);
      return found.status.state === 'suppressed' && found.status.inhibitedBy.length > 0;
    });
  }

  test.each(inhibitions)(
    '%j holds back what only repeats it, for as long as it fires',
    async (cause, held, told) => {
      const all = [...held, ...told];
      onTestFinished(async () => post([cause, ...all], true));
      await post([cause, ...all], false);
      await eventually(async () => {
        expect(await heldBack(all)).toEqual([...held.map(() => true), ...told.map(() => false)]);
      });
      expect(await heldBack([cause])).toEqual([false]);
      // others of these may be the cause of one another
      await post([cause], true);
      await eventually(async () => expect(await heldBack(held.slice(0, 1))).toEqual([false]));
    },
  );

  test('each receiver is told of its own', async () => {
    const alerts = [
      { alertname: 'BrokerTwoLeaders', severity: 'critical' },
      { alertname: 'BrokerBreakerOpen', severity: 'warning' },
      { alertname: 'BrokerSpansDropped', severity: 'info', job: 'worker', reason: 'queue_full' },
    ];
    await post(alerts, false);
    for (const [index, path] of ['/page', '/ticket', '/note'].entries()) {
      const { alertname } = alerts[index]!;
      const look = (): SentAlerts[] => {
        const found = receiver.sent.filter((each) =>
          each.alerts.some(({ labels }) => labels['alertname'] === alertname),
        );
        expect(found.length, `${alertname} in ${JSON.stringify(receiver.sent)}`).toBeGreaterThan(0);
        return found;
      };
      const found = await eventually(look, { timeoutMs: 60_000, what: path });
      expect([...new Set(found.map((each) => each.path))]).toEqual([path]);
    }
  });

  test('the watchdog of a real Prometheus arrives, with links and without their labels', async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const text = readFileSync(join(top, 'deploy/prometheus/prometheus.yml'), 'utf8');
    const found = text.replace(
      /- dns_sd_configs:\n.*tasks\.alertmanager.*\n/,
      `- static_configs: [{ targets: ['${host}'] }]\n`,
    );
    expect(found).toContain(host);
    const configuration = file(
      'prometheus.yml',
      found.replaceAll(/^ {2}- (rules|alerts)\//gm, `  - ${top}/deploy/prometheus/$1/`),
    );
    await using _prometheus = await startHttpProgram(join(dir, 'prometheus'), {
      args: [
        `--config.file=${configuration}`,
        `--storage.tsdb.path=${join(scratch, 'tsdb')}`,
        `--web.listen-address=${address}`,
        // Prometheus 3 does it without being told, and says so
        '--enable-feature=exemplar-storage,expand-external-labels',
      ],
      env: { RUNBOOK_BASE: 'https://git.example/broker/', GRAFANA_BASE: 'https://grafana.example' },
      readyUrl: `http://${address}/-/ready`,
    });
    const look = (): SentAlerts => {
      const arrived = receiver.sent.find(({ path }) => path === '/watchdog');
      if (arrived === undefined) throw new Error(JSON.stringify(receiver.sent));
      return arrived;
    };
    const { alerts } = await eventually(look, { timeoutMs: 90_000, what: 'the watchdog' });
    expect(alerts[0]?.labels).toEqual({ alertname: 'BrokerWatchdog', severity: 'info' });
    expect(alerts[0]?.annotations).toMatchObject({
      runbook_url: 'https://git.example/broker/deploy/runbook.md#brokerwatchdog',
      dashboard_url: 'https://grafana.example/d/broker-overview',
    });
  });
});
