/**
 * Goal: a collector that fails, hangs or is not there costs spans and nothing else, and each span is counted.
 *
 * Method: real spans of the SDK, a real collector that misbehaves as it is told.
 */
import { SpanKind, SpanStatusCode, type Tracer } from '@opentelemetry/api';
import { AlwaysOnSampler, TracerProvider } from '@opentelemetry/sdk-trace';
import { describe, expect, test } from 'vitest';

import { type SpanDropReason, SpanQueue, type SpanQueueOptions } from '#runtime/span-queue.ts';
import { freePort } from '#test/support/cluster.ts';
import { eventually } from '#test/support/eventually.ts';
import { type OtlpBehaviour, OtlpReceiver } from '#test/support/otlp-receiver.ts';

interface Lab extends AsyncDisposable {
  readonly collector: OtlpReceiver;
  readonly queue: SpanQueue;
  readonly tracer: Tracer;
  /** By reason. */
  readonly dropped: Partial<Record<SpanDropReason, number>>;
  /** Of the log, by their messages. */
  readonly said: string[];
  /** Makes so many spans. */
  make(count: number, name?: string): void;
}

async function openLab(
  behaviour: OtlpBehaviour = 'take',
  options: Partial<SpanQueueOptions> = {},
): Promise<Lab> {
  const collector = await OtlpReceiver.start(behaviour);
  const dropped: Partial<Record<SpanDropReason, number>> = {};
  const said: string[] = [];
  const say = (_members: unknown, message: string): void => void said.push(message);
  const queue = new SpanQueue({
    url: `${collector.endpoint}/v1/traces`,
    headers: {},
    protocol: 'http/protobuf',
    timeoutMs: 300,
    queueMax: 100,
    batchMax: 10,
    delayMs: 10,
    retry: { firstMs: 5, maxMs: 20, times: 2 },
    onDropped: (reason, count) => {
      dropped[reason] = (dropped[reason] ?? 0) + count;
    },
    logger: { warn: say as never, info: say as never },
    ...options,
  });
  const provider = new TracerProvider({ sampler: new AlwaysOnSampler(), spanProcessors: [queue] });
  const tracer = provider.getTracer('event-broker');
  return {
    collector,
    queue,
    tracer,
    dropped,
    said,
    make(count, name = 'x') {
      for (let n = 0; n < count; n += 1) tracer.startSpan(name).end();
    },
    async [Symbol.asyncDispose]() {
      await queue.close(AbortSignal.abort());
      await collector[Symbol.asyncDispose]();
    },
  };
}

describe('a collector that takes', () => {
  test.each(['http/protobuf', 'http/json'] as const)('all of it, in %s', async (protocol) => {
    await using lab = await openLab('take', { protocol });
    const span = lab.tracer.startSpan('whole', {
      kind: SpanKind.PRODUCER,
      attributes: { text: 'é', count: 3, big: 2 ** 40, share: 0.5, flag: true },
      links: [
        {
          context: { traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), traceFlags: 1 },
          attributes: { at: 'link' },
        },
      ],
    });
    span.addEvent('happened', { at: 'event' });
    span.setStatus({ code: SpanStatusCode.ERROR, message: 'why' });
    span.end();
    const [whole] = await lab.collector.spansNamed('whole');
    expect(whole).toMatchObject({
      traceId: span.spanContext().traceId,
      spanId: span.spanContext().spanId,
      parentSpanId: '',
      kind: 4,
      attributes: { text: 'é', count: 3, big: 2 ** 40, share: 0.5, flag: true },
      links: [{ traceId: 'a'.repeat(32), spanId: 'b'.repeat(16), attributes: { at: 'link' } }],
      events: [{ name: 'happened', attributes: { at: 'event' } }],
      status: { code: 2, message: 'why' },
    });
    expect(whole!.endedAt).toBeGreaterThanOrEqual(whole!.startedAt);
    expect(lab.dropped).toEqual({});
  });

  test('gets full batches at once, and the rest after a while', async () => {
    await using lab = await openLab('take', { delayMs: 60_000 });
    lab.make(25);
    await eventually(() => expect(lab.collector.spans).toHaveLength(20));
    expect(lab.collector.bodies).toHaveLength(2);
    await lab.queue.close(AbortSignal.timeout(5000));
    expect(lab.collector.spans).toHaveLength(25);
    expect(lab.dropped).toEqual({});
  });

  test('some of it: the others are counted', async () => {
    await using lab = await openLab();
    lab.collector.rejectedSpans = 2;
    lab.make(5);
    await eventually(() => expect(lab.dropped).toEqual({ refused: 2 }));
  });
});

describe('a collector that does not', () => {
  test('and answers 500: the spans are dropped without another try, and it is said once', async () => {
    await using lab = await openLab(500);
    lab.make(10);
    await eventually(() => expect(lab.dropped).toEqual({ refused: 10 }));
    lab.make(10);
    await eventually(() => expect(lab.dropped).toEqual({ refused: 20 }));
    expect(lab.collector.bodies).toHaveLength(2);
    expect(lab.said).toEqual(['traces cannot be sent, and are dropped']);
    lab.collector.behaviour = 'take';
    lab.make(1);
    await eventually(() => expect(lab.said.at(-1)).toBe('traces are sent again'));
  });

  test('and answers 503: it is tried again, and comes once', async () => {
    await using lab = await openLab(503, { retry: { firstMs: 5, maxMs: 20, times: 1000 } });
    lab.make(10);
    await eventually(() => expect(lab.collector.bodies.length).toBeGreaterThan(2));
    lab.collector.behaviour = 'take';
    await eventually(() => expect(lab.collector.spans).toHaveLength(10));
    expect(lab.dropped).toEqual({});
  });

  test('and answers 503 for long: the spans are dropped in the end', async () => {
    await using lab = await openLab(503);
    lab.make(10);
    await eventually(() => expect(lab.dropped).toEqual({ refused: 10 }));
    expect(lab.collector.bodies).toHaveLength(3);
  });

  test('and hangs: the time is over, and spans wait up to a bound', async () => {
    await using lab = await openLab('hang', {
      queueMax: 50,
      retry: { firstMs: 1, maxMs: 1, times: 0 },
    });
    lab.make(100);
    // the first batch is under way, and no longer in the queue
    expect(lab.dropped).toEqual({ queue_full: 40 });
    await eventually(() => expect(lab.dropped.timeout).toBeGreaterThanOrEqual(10));
  });

  test('and is not there', async () => {
    const url = `http://127.0.0.1:${await freePort()}/v1/traces`;
    await using lab = await openLab('take', { url });
    lab.make(10);
    await eventually(() => expect(lab.dropped).toEqual({ unreachable: 10 }));
  });
});

describe('at the end of the process', () => {
  test('what is left is sent, and what comes later is dropped', async () => {
    await using lab = await openLab('take', { delayMs: 60_000 });
    lab.make(5);
    await lab.queue.close(AbortSignal.timeout(5000));
    lab.make(2);
    expect(lab.collector.spans).toHaveLength(5);
    expect(lab.dropped).toEqual({ shutdown: 2 });
  });

  test('a collector that hangs is not waited for past the deadline', async () => {
    await using lab = await openLab('hang', { timeoutMs: 60_000 });
    lab.make(35);
    await eventually(() => expect(lab.collector.bodies).toHaveLength(1));
    const deadline = new AbortController();
    const closing = lab.queue.close(deadline.signal);
    deadline.abort();
    await closing;
    expect(lab.dropped).toEqual({ shutdown: 35 });
    expect(lab.said.at(-1)).toBe('spans were not sent');
  });

  test('a wait for another try ends, and each batch is sent once', async () => {
    await using lab = await openLab(503, { retry: { firstMs: 60_000, maxMs: 60_000, times: 9 } });
    lab.make(20);
    await eventually(() => expect(lab.collector.bodies).toHaveLength(1));
    await eventually(() => expect(lab.said).toHaveLength(1));
    lab.collector.behaviour = 'take';
    await lab.queue.close(AbortSignal.timeout(5000));
    expect(lab.collector.spans).toHaveLength(20);
    expect(lab.collector.bodies).toHaveLength(3);
    expect(lab.dropped).toEqual({});
  });
});

test('what PostgreSQL says of a statement that failed is left out: it may quote a value', async () => {
  await using lab = await openLab();
  const provider = new TracerProvider({
    sampler: new AlwaysOnSampler(),
    spanProcessors: [lab.queue],
  });
  const fail = (scope: string): void => {
    const span = provider.getTracer(scope).startSpan(scope);
    span.setStatus({ code: SpanStatusCode.ERROR, message: 'invalid input: "hidden-1"' });
    span.end();
  };
  fail('@opentelemetry/instrumentation-pg');
  fail('other');
  const [pg] = await lab.collector.spansNamed('@opentelemetry/instrumentation-pg');
  const [other] = await lab.collector.spansNamed('other');
  expect(pg?.status).toEqual({ code: 2, message: '' });
  expect(other?.status.message).toContain('hidden-1');
});
