import { Gauge, type Registry } from 'prom-client';
import { NameLimit } from '../name-limit.ts';

/** What the metrics of one process are made with. */
export interface MetricSource {
  readonly registry: Registry;
  readonly topics: NameLimit;
  readonly subscriptions: NameLimit;
}

/** `namesMax`: of topics, and of subscriptions, that get a label of their own. */
export function createSource(registry: Registry, namesMax: number): MetricSource {
  return {
    registry,
    topics: new NameLimit(namesMax),
    subscriptions: new NameLimit(namesMax),
  };
}

/** Makes gauges of one registry. */
export function gaugesOf({ registry }: MetricSource) {
  return <Label extends string = never>(
    name: string,
    help: string,
    labelNames: readonly Label[] = [],
  ): Gauge<Label> => new Gauge({ name, help, labelNames, registers: [registry] });
}
