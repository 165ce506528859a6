import { Counter, Gauge } from 'prom-client';
import { type ProcessLimits, readProcessLimits } from '../process-limits.ts';
import type { MetricSource } from './source.ts';

/** What logs and traces leave out. */
export function createTelemetryMetrics({ registry }: MetricSource) {
  const registers = [registry];
  const suppressed = new Counter({
    name: 'broker_log_lines_suppressed_total',
    help: 'Log lines that were left out because the same had just been written',
    registers,
  });
  const dropped = new Counter({
    name: 'broker_trace_spans_dropped_total',
    help: 'Spans that were sampled and did not reach the collector',
    labelNames: ['reason'],
    registers,
  });
  return {
    recordLogLineSuppressed: (count = 1): void => {
      suppressed.inc(count);
    },
    recordSpansDropped: (reason: string, count: number): void => {
      dropped.inc({ reason }, count);
    },
  };
}

/** What this process may use, read whenever the metrics are asked for. */
export function createLimitMetrics({ registry }: MetricSource): void {
  const gauge = (name: string, help: string, limit: keyof ProcessLimits) =>
    new Gauge({
      name,
      help,
      registers: [registry],
      async collect() {
        this.set((await readProcessLimits())[limit]);
      },
    });
  gauge(
    'broker_process_memory_limit_bytes',
    'Memory that the process may use: of its cgroup, else of the machine',
    'memoryBytes',
  );
  gauge(
    'broker_process_cpu_limit_cores',
    'Cores that the process may use: of its cgroup, else of the machine',
    'cpuCores',
  );
}
