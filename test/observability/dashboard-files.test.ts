// The dashboards are read as they are: what Grafana would take without a word, and show nothing.
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import { createMetrics } from '#runtime/metrics.ts';
import {
  type DataSource,
  labelValuesOf,
  metricNamesOf,
  type Panel,
  panelsOf,
  readDashboards,
  seriesFromElsewhere,
  targetsOf,
} from '#test/support/grafana-dashboards.ts';

const deploy = join(import.meta.dirname, '../../deploy');
const filesOf = (pattern: string): string =>
  globSync(pattern, { cwd: deploy })
    .map((file) => readFileSync(join(deploy, file), 'utf8'))
    .join('\n');
const namesIn = (text: string, pattern: RegExp): string[] => [
  ...new Set([...text.matchAll(pattern)].map(([, name = '']) => name)),
];

const dashboards = readDashboards();
const panels = panelsOf(dashboards);
const figures = panels.filter(({ panel }) => !['row', 'text'].includes(panel.type));
const alerts = namesIn(filesOf('prometheus/alerts/*.yml'), /^ *- alert: (\w+)$/gm);
const rules = namesIn(filesOf('prometheus/rules/*.yml'), /^ *- record: (\S+)$/gm);

describe('the files of the dashboards', () => {
  test('are the dashboards that there are meant to be, and each is provisioned as what it is', () => {
    expect(dashboards.map(({ uid }) => uid)).toEqual(
      'edge objectives overview postgresql processes subscriptions topics'
        .split(' ')
        .map((name) => `broker-${name}`),
    );
    for (const dashboard of dashboards) {
      expect(dashboard).toMatchObject({
        uid: dashboard.file,
        title: expect.stringMatching(/^Event Broker: /) as string,
        tags: ['event-broker'],
        schemaVersion: 42,
        editable: false,
        time: { from: 'now-1h', to: 'now' },
        refresh: '30s',
      });
    }
  });

  test('ids are unique within a dashboard, and panels do not lie upon each other', () => {
    for (const { uid, panels: own } of dashboards) {
      expect(
        own.map(({ id }) => id),
        uid,
      ).toEqual(own.map((_, index) => index + 1));
      const taken = own.flatMap((panel) => squaresOf(panel));
      expect(new Set(taken).size, uid).toBe(taken.length);
    }
  });

  test('each panel says what it shows, what is good, and in which unit', () => {
    const silent = panels
      .filter(({ panel }) => panel.type !== 'row')
      .filter(({ panel }) => (panel.description ?? '').length < 30)
      .map(({ at }) => at);
    expect(silent).toEqual([]);
    const vague = figures
      .filter(({ panel }) => !/\bGood: ./.test(panel.description ?? ''))
      .map(({ at }) => at);
    expect(vague).toEqual([]);
    const unitless = figures
      .filter(({ panel }) => !panel.fieldConfig?.defaults.unit)
      .map(({ at }) => at);
    expect(unitless).toEqual([]);
  });

  test('data sources are provisioned ones', () => {
    const known = namesIn(filesOf('grafana/provisioning/datasources/*.yml'), /^ *uid: (\w+)$/gm);
    const of = (at: string, datasource: DataSource | undefined) => ({ at, uid: datasource?.uid });
    const used = [
      ...figures.map(({ at, panel }) => of(at, panel.datasource)),
      ...dashboards.flatMap(({ uid, annotations, templating }) =>
        [...annotations.list, ...templating.list].map((each) => of(uid, each.datasource)),
      ),
    ];
    expect(used.filter(({ uid }) => !known.includes(uid ?? ''))).toEqual([]);
  });

  test('no query names a series that nobody makes', () => {
    const known = new Set([
      ...seriesOfProcesses(),
      ...rules,
      ...seriesFromElsewhere,
      'up',
      'ALERTS',
    ]);
    const unknown = [
      ...targetsOf(dashboards).map(({ at, target }) => ({ at, query: target.expr })),
      ...dashboards.flatMap(({ uid, annotations, templating }) => [
        ...annotations.list.map(({ target }) => ({ at: uid, query: target.expr })),
        ...templating.list.map(({ query }) => ({
          at: uid,
          query: labelValuesOf(query.query).selector,
        })),
      ]),
    ].flatMap(({ at, query }) => {
      const names = metricNamesOf(query);
      expect(names, at).not.toEqual([]);
      return names.filter((name) => !known.has(name)).map((name) => `${at}: ${name}`);
    });
    expect(unknown).toEqual([]);
  });

  test('links lead to dashboards and variables that there are', () => {
    const variablesOf = new Map(
      dashboards.map(({ uid, templating }) => [uid, templating.list.map(({ name }) => name)]),
    );
    const links = dashboards.flatMap(({ uid, text }) =>
      [...text.matchAll(/"url": "([^"]+)"/g)].map(([, url = '']) => ({ uid, url })),
    );
    expect(links.length).toBeGreaterThan(10);
    const broken = links.filter(({ url }) => {
      const [, uid = ''] = /^\/d\/([\w-]+)\?\$\{__url_time_range\}/.exec(url) ?? [];
      const names = [...url.matchAll(/&var-(\w+)=/g)].map(([, name = '']) => name);
      return names.some((name) => !variablesOf.get(uid)?.includes(name)) || !variablesOf.has(uid);
    });
    expect(broken).toEqual([]);
  });

  test('each alert is named by a panel that shows its figure, and the README leads from one to the other', () => {
    const named = new Map<string, Set<string>>(alerts.map((name) => [name, new Set()]));
    for (const { dashboard, panel } of panels) {
      const names = (panel.description ?? '').match(/\bBroker[A-Z]\w+/g) ?? [];
      for (const name of names) {
        expect(alerts, panel.title).toContain(name);
        named.get(name)?.add(dashboard.uid);
      }
    }
    expect([...named].filter(([, uids]) => uids.size === 0).map(([alert]) => alert)).toEqual([]);
    const table = [...named]
      .toSorted(([a], [b]) => (a < b ? -1 : 1))
      .map(([alert, uids]) => `${alert} | ${[...uids].map((uid) => `\`${uid}\``).join(' ')}`);
    const readme = readFileSync(join(deploy, 'grafana/README.md'), 'utf8');
    const lines = [...readme.matchAll(/^\| `(Broker[A-Z]\w+)` +\| (.*?) +\|$/gm)].map(
      ([, alert, uids]) => `${alert} | ${uids}`,
    );
    expect(lines).toEqual(table);
    // what an alert itself says of its dashboard is true
    const said = [...filesOf('prometheus/alerts/*.yml').matchAll(/\/d\/(broker-\w+)/g)];
    const uids = dashboards.map(({ uid }) => uid);
    expect(said.map(([, uid]) => uid).filter((uid) => !uids.includes(uid ?? ''))).toEqual([]);
  });

  test('the members of a panel stand in one order', () => {
    const order =
      'id type title description gridPos datasource targets transformations fieldConfig options collapsed panels'.split(
        ' ',
      );
    const sorted = (panel: Panel): string[] =>
      Object.keys(panel).toSorted((a, b) => order.indexOf(a) - order.indexOf(b));
    for (const { panel, at } of panels) expect(Object.keys(panel), at).toEqual(sorted(panel));
  });
});

/** What the processes expose, by the names that their samples have. */
function seriesOfProcesses(): string[] {
  return createMetrics({ service: 'test' })
    .registry.getMetricsAsArray()
    .flatMap((metric) => {
      const { name, type } = metric as unknown as { name: string; type?: unknown };
      const isHistogram = type === 'histogram' || 'observe' in metric;
      return isHistogram ? ['_bucket', '_sum', '_count'].map((end) => name + end) : [name];
    });
}

function squaresOf({ gridPos: { x, y, w, h } }: Panel): string[] {
  expect(x + w).toBeLessThanOrEqual(24);
  return Array.from({ length: w * h }, (_, n) => `${x + (n % w)},${y + Math.floor(n / w)}`);
}
