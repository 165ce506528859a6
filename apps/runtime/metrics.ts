import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { createDatabaseMetrics } from './metrics/database.ts';
import { createClaimMetrics, createDeliveryMetrics } from './metrics/delivery.ts';
import { expose, type Exposition } from './metrics/exposition.ts';
import { createHttpMetrics } from './metrics/http.ts';
import { createLeaderMetrics, createLeaseMetrics } from './metrics/leader.ts';
import { createLimitMetrics, createTelemetryMetrics } from './metrics/process.ts';
import { createPublishMetrics } from './metrics/publish.ts';
import { createPushMetrics } from './metrics/push.ts';
import { createSettleMetrics } from './metrics/settle.ts';
import { createSource } from './metrics/source.ts';
import { version } from './version.ts';

export type { BacklogSample } from './metrics/leader.ts';
export type { PushFailure, PushResult } from './metrics/push.ts';

export type Metrics = ReturnType<typeof createMetrics>;

export interface MetricsOptions {
  readonly service: string;
  /** Topics, and subscriptions, that have a label of their own; all others are counted as `other` (200). */
  readonly namesMax?: number;
}

/**
 * The metrics of one process, in a registry of their own, with one function per business fact.
 * Everything carries the label `service`. Nothing is looked up when they are asked for but the state of this very process.
 */
export function createMetrics({ service, namesMax = 200 }: MetricsOptions) {
  const registry = new Registry();
  registry.setDefaultLabels({ service });
  collectDefaultMetrics({ register: registry });
  // sums of gauges that are there too, under names that are for counters
  for (const kind of ['handles', 'requests', 'resources']) {
    registry.removeSingleMetric(`nodejs_active_${kind}_total`);
  }
  const buildInfo = new Gauge({
    name: 'broker_build_info',
    help: 'Always 1; the version is the label',
    labelNames: ['version'],
    registers: [registry],
  });
  buildInfo.set({ version }, 1);
  const source = createSource(registry, namesMax);
  createLimitMetrics(source);
  return {
    registry,
    /** All of them as text: in OpenMetrics, with exemplars, where this Accept header asks for it. */
    expose: (accept?: string): Promise<Exposition> => expose(registry, { service }, accept),
    ...createPublishMetrics(source),
    ...createDeliveryMetrics(source),
    ...createClaimMetrics(source),
    ...createSettleMetrics(source),
    ...createPushMetrics(source),
    ...createLeaseMetrics(source),
    ...createLeaderMetrics(source, namesMax),
    ...createDatabaseMetrics(source),
    ...createHttpMetrics(source),
    ...createTelemetryMetrics(source),
  };
}
