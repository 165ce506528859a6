import { randomBytes } from 'node:crypto';

import { expect } from 'vitest';

import type { ReceivedSpan } from './otlp-protobuf.ts';
import type { OtlpReceiver } from './otlp-receiver.ts';

/** Settings of a process that sends its traces there, at once, and keeps next to none but those that a caller keeps. */
export function tracingTo(endpoint: string): Record<string, string> {
  return {
    OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
    OTEL_TRACES_SAMPLER_ARG: '0.000000001',
    OTEL_BSP_SCHEDULE_DELAY: '50',
  };
}

/** A caller's trace, kept or not, as the header says it. */
export function aTrace(flags: '00' | '01' = '01') {
  const [traceId, spanId] = [randomBytes(16).toString('hex'), randomBytes(8).toString('hex')];
  return { traceId, spanId, traceparent: `00-${traceId}-${spanId}-${flags}` };
}

export function idOf({ traceId, spanId }: { traceId: string; spanId: string }): string {
  return `${traceId} ${spanId}`;
}

export const linksTo =
  (target: { traceId: string; spanId: string }) =>
  (span: ReceivedSpan): boolean =>
    span.links.some((link) => idOf(link) === idOf(target));

/** Finds spans of one story among those that a collector has got. */
export function storyTeller(collector: () => OtlpReceiver) {
  /** The one span of that name that links to it. */
  async function spanLinkedTo(
    name: string,
    target: { traceId: string; spanId: string },
    attributes: Record<string, unknown> = {},
  ): Promise<ReceivedSpan> {
    const isLike = (span: ReceivedSpan): boolean =>
      Object.entries(attributes).every(([key, value]) => span.attributes[key] === value);
    const fits = (span: ReceivedSpan): boolean => linksTo(target)(span) && isLike(span);
    const found = await collector().spansNamed(name, { fits });
    expect(found).toHaveLength(1);
    return found[0]!;
  }

  async function childNamed(name: string, parent: ReceivedSpan): Promise<ReceivedSpan> {
    const fits = (span: ReceivedSpan): boolean =>
      span.traceId === parent.traceId && span.parentSpanId === parent.spanId;
    const found = await collector().spansNamed(name, { fits });
    expect(found).toHaveLength(1);
    return found[0]!;
  }

  /** Everything that is in the caller's trace, or in one that a link leads to it from, over others if need be. */
  function storyOf(caller: { traceId: string }): ReceivedSpan[] {
    const traces = new Set([caller.traceId]);
    for (let before = 0; before < traces.size;) {
      before = traces.size;
      for (const span of collector().spans) {
        if (span.links.some(({ traceId }) => traces.has(traceId))) traces.add(span.traceId);
      }
    }
    return collector().spans.filter(({ traceId }) => traces.has(traceId));
  }

  return { spanLinkedTo, childNamed, storyOf };
}
