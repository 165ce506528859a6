import type { Metric, Registry } from 'prom-client';

export interface EventHistogramOptions {
  readonly name: string;
  readonly help: string;
  readonly labelName: string;
  /** Upper bounds, ascending. */
  readonly buckets: readonly number[];
  readonly registry: Registry;
}

interface Exemplar {
  readonly labelSet: { readonly trace_id: string };
  readonly value: number;
  readonly timestamp: number;
}

interface Series {
  /** Of each bucket by itself, the last one has no bound. */
  readonly counts: number[];
  readonly exemplars: (Exemplar | undefined)[];
  sum: number;
  count: number;
}

interface Sample {
  readonly metricName: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
  readonly exemplar?: Exemplar | undefined;
}

/**
 * A histogram of prom-client's registries in which one observation may stand for many events that have it in common: with
 * prom-client's own each event would be a call of its own, and there are 100,000 a second of them.
 */
export class EventHistogram {
  readonly name: string;
  readonly help: string;
  readonly type = 'histogram';
  readonly #labelName: string;
  readonly #buckets: readonly number[];
  readonly #series = new Map<string, Series>();

  constructor({ name, help, labelName, buckets, registry }: EventHistogramOptions) {
    this.name = name;
    this.help = help;
    this.#labelName = labelName;
    this.#buckets = buckets;
    // Its types know prom-client's classes alone; what a registry calls is get() and reset().
    registry.registerMetric(this as unknown as Metric);
  }

  /** `traceId`: of a trace that shows such an event, kept as the exemplar of its bucket. */
  observe(
    label: string,
    value: number,
    { events = 1, traceId }: { readonly events?: number; readonly traceId?: string | undefined },
  ): void {
    if (!Number.isFinite(value) || events <= 0) return;
    const series = this.#seriesOf(label);
    const found = this.#buckets.findIndex((bound) => value <= bound);
    const bucket = found === -1 ? this.#buckets.length : found;
    series.counts[bucket] = (series.counts[bucket] ?? 0) + events;
    series.sum += value * events;
    series.count += events;
    if (traceId === undefined) return;
    const timestamp = (performance.timeOrigin + performance.now()) / 1000;
    series.exemplars[bucket] = { labelSet: { trace_id: traceId }, value, timestamp };
  }

  async get(): Promise<{ name: string; help: string; type: string; values: Sample[] }> {
    const values: Sample[] = [];
    for (const [label, series] of this.#series) this.#addSamples(values, label, series);
    return { name: this.name, help: this.help, type: this.type, values };
  }

  reset(): void {
    this.#series.clear();
  }

  #seriesOf(label: string): Series {
    const known = this.#series.get(label);
    if (known !== undefined) return known;
    const counts = Array.from({ length: this.#buckets.length + 1 }, () => 0);
    const series: Series = { counts, exemplars: [], sum: 0, count: 0 };
    this.#series.set(label, series);
    return series;
  }

  #addSamples(values: Sample[], label: string, series: Series): void {
    const labels = { [this.#labelName]: label };
    let count = 0;
    for (const [index, ofBucket] of series.counts.entries()) {
      count += ofBucket;
      values.push({
        metricName: `${this.name}_bucket`,
        labels: { le: this.#buckets[index] ?? '+Inf', ...labels },
        value: count,
        exemplar: series.exemplars[index],
      });
    }
    values.push({ metricName: `${this.name}_sum`, labels, value: series.sum });
    values.push({ metricName: `${this.name}_count`, labels, value: series.count });
  }
}
