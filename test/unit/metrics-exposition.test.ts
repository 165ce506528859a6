import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { createMetrics, type Metrics } from '#runtime/metrics.ts';
import { exemplarTrace } from '#runtime/metrics/exemplar.ts';
import { NameLimit } from '#runtime/name-limit.ts';

const traceId = '0af7651916cd43dd8448eb211c80319c';
const openMetrics = 'application/openmetrics-text; version=1.0.0; charset=utf-8';
/** What Prometheus sends: 2.42 and 3. */
const accepts = [
  'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
  'application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2',
];

function busy(): Metrics {
  const metrics = createMetrics({ service: 'api' });
  metrics.recordPublish({
    topic: 'say "hello"\n',
    published: 2,
    duplicates: 0,
    conflicts: 0,
    durationSeconds: 0.01,
  });
  metrics.recordDelivered({
    subscription: 'billing',
    events: 3,
    redelivered: 1,
    waitSeconds: 0.02,
    traceId,
  });
  metrics.setLeader({ isLeader: true, term: 2 });
  return metrics;
}

describe('the format', () => {
  test.each(accepts)('is OpenMetrics for Prometheus, with exemplars: %s', async (accept) => {
    const { contentType, body } = await busy().expose(accept);
    expect(contentType).toBe(openMetrics);
    expect(body).toMatch(/\n# EOF\n$/);
    expect(body).toContain('# TYPE broker_events_published counter\n');
    expect(body).toContain(
      'broker_events_published_total{topic="say \\"hello\\"\\n",result="published",service="api"} 2\n',
    );
    expect(body).toMatch(
      new RegExp(
        `^broker_queue_wait_seconds_bucket\\{le="0.025",subscription="billing",service="api"\\} 3 # \\{trace_id="${traceId}"\\} 0.02 \\d+\\.?\\d*$`,
        'm',
      ),
    );
    expect(body).not.toContain('_total_total');
  });

  test.each([
    undefined,
    '*/*',
    'text/plain',
    'text/plain;q=0.9,application/openmetrics-text;q=0.8',
    'application/openmetrics-text;version=2.0.0',
    'application/openmetrics-text;q=0',
  ])('is plain text for others, also after it was asked for otherwise: %s', async (accept) => {
    const metrics = busy();
    await metrics.expose(accepts[0]);
    const { contentType, body } = await metrics.expose(accept);
    expect(contentType).toBe('text/plain; version=0.0.4; charset=utf-8');
    expect(body).toContain('# TYPE broker_events_published_total counter\n');
    expect(body).not.toContain('trace_id');
    expect(body).not.toContain('# EOF');
  });

  test('both have the same samples', async () => {
    const metrics = busy();
    const samplesOf = (text: string): string[] =>
      text
        .split('\n')
        .filter((line) => line.startsWith('broker_') && !line.includes('limit'))
        .map((line) => line.replace(/ # .*/, ''))
        .toSorted();
    const plain = samplesOf((await metrics.expose()).body);
    expect(samplesOf((await metrics.expose(openMetrics)).body)).toEqual(plain);
    expect(plain.length).toBeGreaterThan(100);
  });
});

const promtool = 'promtool';
const hasPromtool = spawnSync(promtool, ['--version']).status === 0;

test.skipIf(!hasPromtool)('promtool finds nothing wrong with the text format', async () => {
  const { body } = await busy().expose();
  const { status, stdout, stderr } = spawnSync(promtool, ['check', 'metrics'], { input: body });
  // what Node’s own metrics are called is not ours
  const said = `${stdout.toString()}${stderr.toString()}`
    .split('\n')
    .filter((line) => line.startsWith('broker_'));
  expect([said, stderr.toString().includes('error')]).toEqual([[], false]);
  expect(status).not.toBe(1);
});

describe('exemplars', () => {
  test.each([
    [`00-${traceId}-b7ad6b7169203331-01`, traceId],
    [`00-${traceId}-b7ad6b7169203331-03`, traceId],
    [`00-${traceId}-b7ad6b7169203331-00`, undefined],
    [`00-${traceId}-b7ad6b7169203331-02`, undefined],
    ['nonsense', undefined],
    [null, undefined],
  ])('%s names %s', (traceparent, expected) => {
    expect(exemplarTrace(traceparent)).toBe(expected);
  });
});

test('names past the limit share one, and those that are known keep theirs', () => {
  const limit = new NameLimit(2);
  expect(['a', 'b', 'c', 'a', 'd', 'b'].map((name) => limit.labelOf(name))).toEqual([
    'a',
    'b',
    'other',
    'a',
    'other',
    'b',
  ]);
});
