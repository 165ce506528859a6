import { createMetrics, type Metrics, type MetricsOptions } from './metrics.ts';
import type { ProcessKit } from './process.ts';

/** The metrics of a process that serves them itself; what its log and its traces do without is counted there. */
export function createProcessMetrics(
  kit: Pick<ProcessKit, 'onSpansDropped' | 'onLogLinesSuppressed'>,
  options: MetricsOptions,
): Metrics {
  const metrics = createMetrics(options);
  kit.onSpansDropped?.(metrics.recordSpansDropped);
  kit.onLogLinesSuppressed?.(metrics.recordLogLineSuppressed);
  return metrics;
}
