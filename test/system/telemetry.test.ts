/**
 * Goal: traces cost a process nothing where they are off or cannot be sent, and what a process has told is sent before it ends.
 *
 * Method: real processes with a collector in the test's own process that takes what comes, hangs, refuses, or is not there.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { Cluster, freePort } from '#test/support/cluster.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { HttpClient } from '#test/support/http-client.ts';
import { type OtlpBehaviour, OtlpReceiver } from '#test/support/otlp-receiver.ts';
import { aTrace, tracingTo } from '#test/support/trace-story.ts';

let database: Awaited<ReturnType<typeof cloneDatabase>>;

beforeAll(async () => {
  database = await cloneDatabase();
});
afterAll(async () => database[Symbol.asyncDispose]());

test('migrations are a span, sent before the process ends', async () => {
  await using collector = await OtlpReceiver.start();
  const child = spawn(process.execPath, ['apps/migrate/main.ts'], {
    cwd: join(import.meta.dirname, '../..'),
    stdio: 'ignore',
    env: {
      PATH: process.env['PATH'],
      DATABASE_URL: database.url,
      ...tracingTo(collector.endpoint),
      OTEL_BSP_SCHEDULE_DELAY: '60000',
    },
  });
  const [code] = (await once(child, 'exit')) as [number | null];
  expect(code).toBe(0);
  expect(collector.named('migrate')).toMatchObject([
    { resource: { 'service.name': 'broker-migrate' }, parentSpanId: '', status: { code: 0 } },
  ]);
});

describe('a collector that', () => {
  const cases: [string, OtlpBehaviour | 'absent', string][] = [
    ['hangs', 'hang', 'timeout'],
    ['answers 500', 500, 'refused'],
    ['is not there', 'absent', 'unreachable'],
  ];
  test.each(cases)(
    '%s costs spans, which are counted, and nothing else',
    async (_, behaviour, reason) => {
      await using other = await OtlpReceiver.start(behaviour === 'absent' ? 'hang' : behaviour);
      const absent = `http://127.0.0.1:${await freePort()}`;
      const cluster = await Cluster.start({
        databaseUrl: database.url,
        reapers: 0,
        env: {
          ...tracingTo(behaviour === 'absent' ? absent : other.endpoint),
          OTEL_EXPORTER_OTLP_TIMEOUT: '500',
          OTEL_BSP_MAX_QUEUE_SIZE: '20',
          OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '10',
        },
      });
      const [api] = cluster.apis;
      try {
        using http = new HttpClient(cluster.adminKey);
        const url = `${api!.url}/api/v1/topics/failing`;
        await http.call(url, { method: 'PUT', body: {} });
        const dropped = async (): Promise<string[]> => {
          const { text } = await http.send(`${api!.url}/api/metrics`);
          return text
            .split('\n')
            .filter((line) => line.startsWith('broker_trace_spans_dropped_total'));
        };
        await eventually(
          async () => {
            await http.call(`${url}/events`, { body: { type: 'x' }, headers: aTrace() });
            expect((await dropped()).join()).toContain(`reason="${reason}"`);
          },
          { timeoutMs: 30_000 },
        );
        expect(api!.logs.map(({ msg }) => msg)).toContain('traces cannot be sent, and are dropped');
        // SHUTDOWN_TIMEOUT_MS would end it with 1
        expect(await api!.stop()).toEqual({ code: 0, signal: null });
      } finally {
        await cluster[Symbol.asyncDispose]();
      }
    },
  );
});

describe('which modules are loaded', () => {
  /** Says what it loads of OpenTelemetry. */
  const spy = `--import=data:text/javascript,${encodeURIComponent(
    `import { registerHooks } from 'node:module';
     registerHooks({ load(url, context, next) {
       const [, name] = /node_modules\\/(@opentelemetry\\/[^/]+)/.exec(url) ?? [];
       if (name) process.stderr.write('loads ' + name + '\\n');
       return next(url, context);
     } });`,
  )}`;

  test.each([
    ['without an endpoint only the API', {}, ['loads @opentelemetry/api']],
    [
      'with one the SDK too',
      tracingTo('http://127.0.0.1:1'),
      expect.arrayContaining(['loads @opentelemetry/sdk-node']),
    ],
  ])('%s', async (_, env, expected) => {
    const cluster = await Cluster.start({
      databaseUrl: database.url,
      reapers: 0,
      env: { ...env, NODE_OPTIONS: spy },
    });
    const [api] = cluster.apis;
    await cluster[Symbol.asyncDispose]();
    const loaded = new Set(api!.stray.filter((line) => line.startsWith('loads ')));
    expect([...loaded].toSorted()).toEqual(expected);
  });
});
