/**
 * Goal: spans, their links and what log lines say of them, with the SDK as a process starts it and a collector that takes what it sends.
 *
 * Method: `off` runs first, before there is an SDK in this process.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { loadApiConfig } from '#runtime/config.ts';
import { tracesUrl } from '#runtime/config-observability.ts';
import { createLogger } from '#runtime/logger.ts';
import { creationLinks, partHere, recordReceive, withBatchSpan } from '#runtime/messaging-spans.ts';
import { createSampler, startTelemetry, type Telemetry } from '#runtime/telemetry.ts';
import {
  activeSpanContext,
  activeTrace,
  activeTraceId,
  creationContext,
  linksTo,
  outsideSpan,
  recordSpan,
  type SpanContext,
  withSpan,
} from '#runtime/tracing.ts';
import { OtlpReceiver } from '#test/support/otlp-receiver.ts';

const database = { DATABASE_URL: 'postgres://u@127.0.0.1/d' };
const kept = { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1 };
const notKept = { traceId: 'c'.repeat(32), spanId: 'd'.repeat(16), traceFlags: 0 };

describe('without an SDK', () => {
  test('spans are not there, and what would be in them runs', async () => {
    expect(withSpan('x', {}, (span) => [span.isRecording(), activeSpanContext()])).toEqual([
      false,
      undefined,
    ]);
    await expect(withSpan('x', {}, () => Promise.reject(new Error('mine')))).rejects.toThrow(
      'mine',
    );
    expect(recordSpan('x', { startedAt: 0 })).toBeUndefined();
    expect(linksTo([{ context: kept }])).toEqual([]);
    expect(activeTrace()).toBeUndefined();
    expect(outsideSpan(() => 1)).toBe(1);
    expect(partHere()).toEqual({ trace: undefined, span: undefined });
  });

  test('nothing is sent unless an endpoint is set', () => {
    const of = (env: Record<string, string>): string | undefined =>
      tracesUrl(loadApiConfig({ ...database, ...env }));
    expect(of({})).toBeUndefined();
    expect(of({ OTEL_TRACES_SAMPLER_ARG: '1' })).toBeUndefined();
    expect(of({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4318/' })).toBe('http://c:4318/v1/traces');
    expect(of({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4318/otlp' })).toBe(
      'http://c:4318/otlp/v1/traces',
    );
    expect(
      of({
        OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4318',
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://d:1/x',
      }),
    ).toBe('http://d:1/x');
    expect(
      of({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://c:4318', OTEL_SDK_DISABLED: 'true' }),
    ).toBeUndefined();
  });
});

describe('the variables', () => {
  test.each([
    ['OTEL_EXPORTER_OTLP_ENDPOINT', 'collector:4318'],
    ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', '4318'],
    ['OTEL_EXPORTER_OTLP_PROTOCOL', 'grpc'],
    ['OTEL_EXPORTER_OTLP_HEADERS', 'hidden-1'],
    ['OTEL_EXPORTER_OTLP_TIMEOUT', '10s'],
    ['OTEL_TRACES_SAMPLER', 'always'],
    ['OTEL_TRACES_SAMPLER_ARG', '10'],
    ['OTEL_RESOURCE_ATTRIBUTES', 'a=b;c'],
    ['OTEL_BSP_MAX_QUEUE_SIZE', '0'],
    ['OTEL_BSP_MAX_EXPORT_BATCH_SIZE', '3000'],
    ['OTEL_BSP_SCHEDULE_DELAY', '-1'],
    ['OTEL_SDK_DISABLED', 'yes'],
    ['OTEL_EXPORTER_OTLP_ENDPOIT', 'http://c:4318'],
  ])('%s=%s is refused by its name', (name, value) => {
    const load = (): unknown => loadApiConfig({ ...database, [name]: value });
    expect(load).toThrow(new RegExp(`^The configuration is wrong:\n  ${name}: [^\n]*$`));
    expect(load).not.toThrow('hidden-1');
  });

  test('of OpenTelemetry that are not ours are left alone', () => {
    const names = [
      'OTEL_SERVICE_NAME OTEL_LOG_LEVEL OTEL_PROPAGATORS OTEL_TRACES_EXPORTER OTEL_METRICS_EXPORTER',
      'OTEL_LOGS_EXPORTER OTEL_BSP_EXPORT_TIMEOUT OTEL_BLRP_SCHEDULE_DELAY OTEL_BLRP_EXPORT_TIMEOUT',
      'OTEL_BLRP_MAX_QUEUE_SIZE OTEL_BLRP_MAX_EXPORT_BATCH_SIZE OTEL_SPAN_LINK_COUNT_LIMIT',
      'OTEL_EXPORTER_OTLP_METRICS_ENDPOINT OTEL_EXPORTER_OTLP_LOGS_ENDPOINT OTEL_EXPORTER_OTLP_INSECURE',
      'OTEL_EXPORTER_OTLP_TRACES_HEADERS OTEL_EXPORTER_OTLP_TRACES_PROTOCOL OTEL_EXPORTER_OTLP_COMPRESSION',
      'OTEL_EXPORTER_OTLP_CERTIFICATE OTEL_METRIC_EXPORT_INTERVAL OTEL_ATTRIBUTE_COUNT_LIMIT',
      'OTEL_NODE_ENABLED_INSTRUMENTATIONS OTEL_NODE_DISABLED_INSTRUMENTATIONS OTEL_NODE_RESOURCE_DETECTORS',
    ].join(' ');
    const env = Object.fromEntries(names.split(' ').map((name) => [name, 'x']));
    expect(() => loadApiConfig({ ...database, ...env })).not.toThrow();
  });
});

describe('with one', () => {
  let collector: OtlpReceiver;
  let telemetry: Telemetry;

  beforeAll(async () => {
    collector = await OtlpReceiver.start();
    const config = loadApiConfig({
      ...database,
      INSTANCE: 'i-1',
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.endpoint,
      OTEL_EXPORTER_OTLP_HEADERS: 'x-tenant=a%20b',
      OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=test,service.name=not-mine',
      OTEL_TRACES_SAMPLER_ARG: '1',
      OTEL_BSP_SCHEDULE_DELAY: '10',
    });
    telemetry = startTelemetry(tracesUrl(config)!, {
      config,
      service: 'api',
      env: {},
      logger: createLogger({ service: 'api', instance: 'i-1', level: 'silent' }),
      onDropped: () => undefined,
    });
  });

  afterAll(async () => {
    await telemetry.stop(AbortSignal.timeout(5000));
    await collector[Symbol.asyncDispose]();
  });

  test('a span says which process it is of, what it is about and what went wrong', async () => {
    const failing = withSpan('a failure', { kind: 'consumer', attributes: { n: 1 } }, async () => {
      withSpan('its child', {}, () => undefined);
      throw Object.assign(new Error('with a secret'), { code: 'ECONNRESET' });
    });
    await expect(failing).rejects.toThrow('with a secret');
    const [span] = await collector.spansNamed('a failure');
    expect(span).toMatchObject({
      scope: 'event-broker',
      kind: 5,
      attributes: { n: 1, 'error.type': 'ECONNRESET' },
      status: { code: 2, message: '' },
      resource: {
        'service.name': 'broker-api',
        'service.instance.id': 'i-1',
        'service.version': expect.any(String),
        'deployment.environment.name': 'test',
      },
    });
    const [child] = await collector.spansNamed('its child');
    expect(child).toMatchObject({ traceId: span!.traceId, parentSpanId: span!.spanId });
    expect(collector.heads[0]).toMatchObject({
      path: '/v1/traces',
      headers: { 'x-tenant': 'a b', 'content-type': 'application/x-protobuf' },
    });
  });

  test('is ended when what it is about has ended, and not before', async () => {
    const gate = Promise.withResolvers<void>();
    const running = withSpan('patient', {}, () => gate.promise);
    await withSpan('after it began', {}, async () => undefined);
    await collector.spansNamed('after it began');
    expect(collector.named('patient')).toEqual([]);
    gate.resolve();
    await running;
    await collector.spansNamed('patient');
  });

  test('made afterwards has the times of what it is about', async () => {
    const ms = (nanoseconds: bigint): number => Number(nanoseconds / 1_000_000n);
    const before = Date.now();
    const beganAt = performance.now() - 2000;
    recordSpan('late', { startedAt: beganAt, error: 'fenced' });
    const lasted = performance.now() - beganAt;
    const [span] = await collector.spansNamed('late');
    expect(ms(span!.endedAt) - ms(span!.startedAt)).toBeGreaterThanOrEqual(1999);
    expect(ms(span!.endedAt) - ms(span!.startedAt)).toBeLessThanOrEqual(lasted + 1);
    expect(ms(span!.startedAt)).toBeLessThan(before);
    expect(span!.attributes).toEqual({ 'error.type': 'fenced' });
  });

  test('what runs outside belongs to none, and what is asked inside of one knows it', () => {
    withSpan('outer', {}, (span) => {
      const { traceId, spanId } = span.spanContext();
      expect(activeTraceId()).toBe(traceId);
      expect(activeTrace()).toEqual({ traceparent: `00-${traceId}-${spanId}-01` });
      expect(outsideSpan(() => activeSpanContext())).toBeUndefined();
      withSpan('other trace', { parent: 'root' }, (root) =>
        expect(root.spanContext().traceId).not.toBe(traceId),
      );
    });
    expect(activeSpanContext()).toBeUndefined();
  });

  test('a span that is not kept has an id for receivers, and none for exemplars', () => {
    withSpan('unseen', { parent: notKept }, (span) => {
      expect(span.isRecording()).toBe(false);
      expect(activeSpanContext()?.traceId).toBe(notKept.traceId);
      expect(activeTraceId()).toBeUndefined();
      expect(activeTrace()?.traceparent).toMatch(new RegExp(`^00-${notKept.traceId}-.*-00$`));
      expect(partHere().span).toBeUndefined();
    });
  });

  test('log lines name the active span', () => {
    const lines: string[] = [];
    const destination = { write: (line: string) => void lines.push(line) };
    const logger = createLogger({ service: 'api', instance: 'i', level: 'info', destination });
    logger.info('outside');
    withSpan('logged', {}, (span) => {
      logger.info({ topic: 'orders' }, 'inside');
      const { traceId, spanId } = span.spanContext();
      expect(JSON.parse(lines[1]!)).toMatchObject({
        trace_id: traceId,
        span_id: spanId,
        topic: 'orders',
        msg: 'inside',
      });
    });
    expect(JSON.parse(lines[0]!)).not.toHaveProperty('trace_id');
  });

  describe('the trace of an event', () => {
    const traceparent = `00-${kept.traceId}-${kept.spanId}-01`;

    test('is read as it was stored', () => {
      expect(creationContext({ traceparent, tracestate: 'v=1,w=2' })).toMatchObject({
        ...kept,
        isRemote: true,
      });
      const state = creationContext({ traceparent, tracestate: 'v=1,w=2' })?.traceState;
      expect(state?.serialize()).toBe('v=1,w=2');
    });

    test.each([null, undefined, '', 'garbage', traceparent.toUpperCase(), `${traceparent}-x`])(
      'is none where it is %s',
      (bad) => {
        expect(creationContext({ traceparent: bad, tracestate: null })).toBeUndefined();
      },
    );
  });

  describe('links', () => {
    const contexts = (count: number, traceFlags: number): SpanContext[] =>
      Array.from({ length: count }, (_, n) => ({
        traceId: (n + 1).toString(16).padStart(32, String(traceFlags)),
        spanId: 'b'.repeat(16),
        traceFlags,
      }));

    test('are 128 at most, and lead to what is kept', () => {
      const all = [...contexts(200, 0), ...contexts(100, 1)].map((context) => ({ context }));
      expect(linksTo(all).map((link) => link.context)).toEqual(contexts(100, 1));
      expect(linksTo(contexts(500, 1).map((context) => ({ context })))).toHaveLength(128);
      // the sampler has to know that there was something, and that it is not kept
      expect(linksTo(contexts(500, 0).map((context) => ({ context })))).toHaveLength(1);
      expect(linksTo([{ context: undefined }])).toEqual([]);
    });

    test('of a claim say which event and which attempt; events without a trace have none', async () => {
      const event = {
        event_id: '17',
        attempt: 2,
        traceparent: `00-${kept.traceId}-${kept.spanId}-01`,
        tracestate: null,
      };
      expect(creationLinks([{ ...event, traceparent: null }])).toEqual([]);
      recordReceive({
        subscription: 'billing',
        events: [event, { ...event, traceparent: null }],
        startedAt: performance.now(),
        parent: 'root',
      });
      const [span] = await collector.spansNamed('receive billing');
      expect(span).toMatchObject({
        kind: 3,
        parentSpanId: '',
        attributes: { 'messaging.batch.message_count': 2, 'messaging.system': 'event_broker' },
        links: [
          {
            traceId: kept.traceId,
            spanId: kept.spanId,
            attributes: { 'messaging.message.id': '17', 'event_broker.delivery_attempt': 2 },
          },
        ],
      });
    });

    test('a receive inside a request that is not kept becomes a trace of its own, where its events are', async () => {
      const receive = (subscription: string, traceFlags: number): void => {
        const traceparent = `00-${kept.traceId}-${kept.spanId}-0${traceFlags}`;
        const events = [{ event_id: '1', attempt: 1, traceparent, tracestate: null }];
        recordReceive({ subscription, events, startedAt: performance.now(), parent: 'kept' });
      };
      withSpan('request', { parent: notKept }, () => {
        receive('seen', 1);
        receive('unseen', 0);
      });
      withSpan('kept request', {}, () => receive('inside', 1));
      const [inside] = await collector.spansNamed('receive inside');
      const [parent] = await collector.spansNamed('kept request');
      expect(inside?.parentSpanId).toBe(parent?.spanId);
      expect(collector.named('receive seen')).toMatchObject([{ parentSpanId: '' }]);
      expect(collector.named('receive unseen')).toEqual([]);
    });

    test('a batch of one is inside of it; of several, linked from and to each', async () => {
      const of = { operation: 'publish_batch', destination: 'orders', messages: 1 };
      withSpan('alone', {}, () => {
        const part = partHere();
        outsideSpan(() => withBatchSpan(of, [part], () => undefined));
      });
      const [alone] = await collector.spansNamed('alone');
      const [single] = await collector.spansNamed('publish_batch orders');
      expect(single).toMatchObject({ traceId: alone!.traceId, parentSpanId: alone!.spanId });

      withSpan('first', { parent: 'root' }, () => {
        const first = partHere();
        withSpan('second', { parent: 'root' }, () => {
          const parts = [first, partHere()];
          withBatchSpan({ ...of, destination: 'both' }, parts, () => undefined);
        });
      });
      const [batch] = await collector.spansNamed('publish_batch both');
      const [first] = await collector.spansNamed('first');
      const [second] = await collector.spansNamed('second');
      const idOf = (span: { traceId: string; spanId: string } | undefined): string =>
        `${span?.traceId} ${span?.spanId}`;
      expect(batch?.parentSpanId).toBe('');
      expect(batch?.links.map(idOf)).toEqual([idOf(first), idOf(second)]);
      expect(first?.links.map(idOf)).toEqual([idOf(batch)]);
      expect(second?.links.map(idOf)).toEqual([idOf(batch)]);
    });
  });
});

describe('sampling', () => {
  test('the ratio decides of traces that begin here and link to nothing', async () => {
    const { ROOT_CONTEXT, SpanKind, trace } = await import('@opentelemetry/api');
    const { rareKey } = await import('#runtime/tracing.ts');
    const isKept = (
      ratio: number,
      {
        traceId = `${'f'.repeat(8)}${'0'.repeat(24)}`,
        context = ROOT_CONTEXT,
        links = [] as SpanContext[],
      } = {},
    ): boolean => {
      const linked = links.map((each) => ({ context: each }));
      const sampler = createSampler(ratio);
      const { decision } = sampler.shouldSample(
        context,
        traceId,
        'x',
        SpanKind.INTERNAL,
        {},
        linked,
      );
      return decision === 2;
    };
    const low = '1'.padStart(32, '0');
    expect([isKept(0.1), isKept(0.1, { traceId: low }), isKept(1)]).toEqual([false, true, true]);
    const rare = ROOT_CONTEXT.setValue(rareKey, true);
    expect([isKept(0.1, { context: rare }), isKept(0, { context: rare })]).toEqual([true, false]);
    expect(isKept(0.1, { links: [notKept, kept] })).toBe(true);
    expect(isKept(0, { links: [kept] })).toBe(true);
    expect(isKept(1, { links: [notKept] })).toBe(false);
    const below = (parent: SpanContext) => trace.setSpanContext(ROOT_CONTEXT, parent);
    expect(isKept(0, { context: below(kept) })).toBe(true);
    expect(isKept(1, { context: below(notKept), links: [kept] })).toBe(false);
  });
});
