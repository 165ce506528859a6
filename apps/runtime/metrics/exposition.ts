import { type AcceptRange, readAccept } from '../accept.ts';
import { type Metric, type OpenMetricsContentType, Registry } from 'prom-client';

export interface Exposition {
  readonly contentType: string;
  readonly body: string;
}

/**
 * All metrics, in OpenMetrics where `accept` asks for it: exemplars are only there. Else in Prometheus' text format.
 * https://prometheus.io/docs/specs/om/open_metrics_spec/
 */
export async function expose(
  registry: Registry,
  labels: Readonly<Record<string, string>>,
  accept: string | undefined,
): Promise<Exposition> {
  const wanted = wantsOpenMetrics(accept) ? openMetricsOf(registry, labels) : registry;
  return { contentType: wanted.contentType, body: await wanted.metrics() };
}

// prom-client renames the counters of a registry for good when it writes OpenMetrics once, so it gets stand-ins.
function openMetricsOf(registry: Registry, labels: object): Registry<OpenMetricsContentType> {
  const open = new Registry<OpenMetricsContentType>();
  open.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
  open.setDefaultLabels(labels);
  for (const metric of registry.getMetricsAsArray() as unknown as Metric[]) {
    open.registerMetric(standInOf(metric));
  }
  return open;
}

function standInOf(metric: Metric): Metric {
  const standIn = {
    name: nameOf(metric),
    get: async () => {
      const data = await metric.get();
      // there the name of a counter is without what its samples end with
      const isCounter = String(data.type) === 'counter';
      const name = isCounter ? data.name.replace(/_total$/, '') : data.name;
      return { ...data, name };
    },
  };
  return standIn as unknown as Metric;
}

function nameOf(metric: Metric): string {
  return (metric as unknown as { readonly name: string }).name;
}

/** As far as two formats need it: the one with the greater weight, plain text where they are equal. */
function wantsOpenMetrics(accept: string | undefined): boolean {
  const weightOf = (isMeant: (range: AcceptRange) => boolean): number =>
    Math.max(
      0,
      ...readAccept(accept)
        .filter(isMeant)
        .map(({ quality }) => quality),
    );
  const openMetrics = weightOf(({ type, parameters }) => {
    const version = parameters.get('version') ?? '1.0.0';
    return type === 'application/openmetrics-text' && ['1.0.0', '0.0.1'].includes(version);
  });
  return openMetrics > weightOf(({ type }) => type === 'text/plain');
}
