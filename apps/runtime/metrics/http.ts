import { Counter, Histogram } from 'prom-client';
import { requestSeconds } from './buckets.ts';
import type { MetricSource } from './source.ts';

/** Requests to this process, and what it answered. */
export function createHttpMetrics({ registry }: MetricSource) {
  const registers = [registry];
  const requests = new Counter({
    name: 'broker_http_requests_total',
    help: 'HTTP requests that were answered',
    labelNames: ['method', 'route', 'status'],
    registers,
  });
  const duration = new Histogram({
    name: 'broker_http_request_duration_seconds',
    help: 'Duration of HTTP requests; a receive that waits for events counts its wait',
    labelNames: ['method', 'route'],
    buckets: requestSeconds,
    registers,
  });
  const problems = new Counter({
    name: 'broker_http_problems_total',
    help: 'HTTP requests that were answered with a problem, by its code',
    labelNames: ['code'],
    registers,
  });
  const healthFailures = new Counter({
    name: 'broker_health_check_failures_total',
    help: 'Checks of readiness that failed when they were asked for',
    labelNames: ['check'],
    registers,
  });
  return {
    /** A request was answered. `route` is the pattern, not the path: the path has names in it. */
    recordHttpRequest(request: {
      method: string;
      route: string;
      status: number;
      durationSeconds: number;
    }): void {
      const { method, route, status, durationSeconds } = request;
      requests.inc({ method, route, status });
      duration.observe({ method, route }, durationSeconds);
    },
    /** A request was answered with a problem. */
    recordHttpProblem: (code: string): void => {
      problems.inc({ code });
    },
    /** Shows codes that did not occur yet as 0, so that the first one counts. */
    declareHttpProblems(codes: readonly string[]): void {
      for (const code of codes) problems.inc({ code }, 0);
    },
    /** A check of readiness has failed. */
    recordHealthCheckFailure(check: string): void {
      healthFailures.inc({ check });
    },
    /** The same for checks of readiness. */
    declareHealthChecks(checks: readonly string[]): void {
      for (const check of checks) healthFailures.inc({ check }, 0);
    },
  };
}
