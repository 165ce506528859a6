/**
 * Goal: every figure of every dashboard is there when it is needed.
 *
 * Method: each query of each panel is asked of a real Prometheus that has scraped real processes with traffic of all kinds. What cannot be
 * there is in a list of test/support/grafana-dashboards.ts, with the reason.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { whyNotThere } from '#test/support/debian-package.ts';
import { eventually } from '#test/support/eventually.ts';
import {
  isFromElsewhere,
  labelValuesOf,
  metricNamesOf,
  readDashboards,
  seriesFromElsewhere,
  targetsOf,
  withVariables,
} from '#test/support/grafana-dashboards.ts';
import { PrometheusServer, type Series } from '#test/support/prometheus-server.ts';
import { PushStage } from '#test/support/push-stage.ts';
import { makeTrafficOfAllKinds } from '#test/support/traffic-of-all-kinds.ts';
import { openVerbDatabase } from '#test/support/verbs.ts';

const dashboards = readDashboards();
const targets = targetsOf(dashboards);

const missing = await whyNotThere('prometheus', 'prometheus');
if (missing !== undefined) process.stdout.write(`without Prometheus: ${missing}\n`);

describe.skipIf(missing !== undefined)('the figures of the dashboards', () => {
  const resources = new AsyncDisposableStack();
  const since = { start: Date.now() / 1000 };
  let prometheus: PrometheusServer;

  beforeAll(async () => {
    const { db, url } = resources.use(await openVerbDatabase());
    const stage = resources.use(
      await PushStage.start({
        databaseUrl: url,
        reapers: 2,
        env: {
          STATEMENT_TIMEOUT_MS: '1000',
          // nobody is there, so spans are dropped; and all traces are kept until then
          OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9',
          OTEL_TRACES_SAMPLER_ARG: '1',
          OTEL_BSP_SCHEDULE_DELAY: '100',
        },
      }),
    );
    const { apis, workers, reapers } = stage.cluster;
    const urlsOf = (processes: readonly { url: string }[]) => processes.map((each) => each.url);
    prometheus = resources.use(
      await PrometheusServer.start({
        jobs: { api: urlsOf(apis), worker: urlsOf(workers), reaper: urlsOf(reapers) },
      }),
    );
    await makeTrafficOfAllKinds(stage, {
      db,
      seen: async () => prometheus.hasScraped(),
      dutyHasFailed: async () => {
        const failed = 'broker_duty_duration_seconds_count{result="failed"}';
        if ((await prometheus.query(failed)).length === 0) throw new Error('none has failed');
      },
    });
  }, 300_000);
  afterAll(async () => resources.disposeAsync());

  /** Waits until each of them has something. */
  async function withoutData(queries: readonly { at: string; look: () => Promise<boolean> }[]) {
    let silent = [...queries];
    await eventually(
      async () => {
        const seen = [];
        for (const each of silent) if (!(await each.look())) seen.push(each);
        silent = seen;
        expect(silent.map(({ at }) => at)).toEqual([]);
      },
      { timeoutMs: 60_000, intervalMs: 1000, what: 'data' },
    );
  }

  test('every query of every panel returns figures, unless it asks for what is elsewhere', async () => {
    const here = targets.filter((each) => !isFromElsewhere(each.expr));
    expect(here.length).toBeGreaterThan(80);
    await withoutData(
      here.map(({ at, target, expr }) => ({
        at,
        look: async () =>
          hasFigure(
            target.instant === true
              ? await prometheus.query(expr)
              : await prometheus.range(expr, since),
          ),
      })),
    );
    console.log(`${here.length} of ${targets.length} queries have data`);
  }, 120_000);

  test('what is elsewhere is asked for, and is not here', async () => {
    const others = targets.filter((each) => isFromElsewhere(each.expr));
    const asked = new Set(others.flatMap(({ target }) => metricNamesOf(target.expr)));
    expect(seriesFromElsewhere.filter((name) => !asked.has(name))).toEqual([]);
    for (const { at, expr } of others) expect(await prometheus.range(expr, since), at).toEqual([]);
  });

  test('panels with exemplars have some, and they name traces', async () => {
    const exemplary = targets.filter(({ target }) => target.exemplar === true);
    expect(exemplary).not.toEqual([]);
    await withoutData(
      exemplary.map(({ at, expr }) => ({
        at,
        look: async () => {
          const found = await prometheus.exemplars(expr, since);
          const labels = found.flatMap(({ exemplars }) => exemplars.map((each) => each.labels));
          for (const { trace_id: id } of labels) expect(id, at).toMatch(/^[0-9a-f]{32}$/);
          return labels.length > 0;
        },
      })),
    );
  }, 120_000);

  test('variables have values, and what marks an event in all panels finds it', async () => {
    await withoutData(
      dashboards.flatMap(({ uid, templating, annotations }) => [
        ...templating.list.map(({ name, query }) => ({
          at: `${uid}: $${name}`,
          look: async () => {
            const { selector, label } = labelValuesOf(query.query);
            const bare = withVariables(selector, { variables: templating.list });
            return (await prometheus.labelValues(bare, label, since)).length > 0;
          },
        })),
        ...annotations.list.map(({ name, target }) => ({
          at: `${uid}: ${name}`,
          look: async () => hasFigure(await prometheus.range(target.expr, since)),
        })),
      ]),
    );
  }, 120_000);
});

function hasFigure(series: readonly Series[]): boolean {
  const values = series.flatMap(({ value, values: many }) => many ?? (value ? [value] : []));
  return values.some(([, text]) => Number.isFinite(Number(text)));
}
