import { activeTraceId } from '../tracing.ts';

const sampled = /^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f][13579bdf]$/;

/**
 * The trace that shows what happens to an event: the active one where it is kept, else the one that it was published in, as far as
 * its `traceparent` says that this one is kept. https://www.w3.org/TR/trace-context/#sampled-flag
 */
export function exemplarTrace(traceparent: string | null): string | undefined {
  return activeTraceId() ?? (traceparent === null ? undefined : sampled.exec(traceparent)?.[1]);
}
