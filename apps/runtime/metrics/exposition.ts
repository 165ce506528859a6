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

/** RFC 9110 section 12.5.1, as far as two formats need it: the one with the greater weight, plain text where they are equal. */
function wantsOpenMetrics(accept = ''): boolean {
  let openMetrics = 0;
  let plain = 0;
  for (const range of accept.toLowerCase().split(',')) {
    const [type = '', ...parameters] = range.split(';').map((part) => part.trim());
    const values = new Map(parameters.map((each) => each.split('=', 2) as [string, string]));
    const weight = Number(values.get('q') ?? 1) || 0;
    const version = values.get('version');
    const isKnown = version === undefined || version === '1.0.0' || version === '0.0.1';
    if (type === 'application/openmetrics-text' && isKnown) {
      openMetrics = Math.max(openMetrics, weight);
    } else if (type === 'text/plain') plain = Math.max(plain, weight);
  }
  return openMetrics > plain;
}
