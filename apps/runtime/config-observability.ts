import Type from 'typebox';

// Traces go out by OTLP where an endpoint is set. The names, their meaning and their defaults are those of OpenTelemetry:
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and …/protocol/exporter/. What else
// there is (limits of spans, disabled instrumentations) is read by the SDK itself and not checked; other variables of exporters are not read.

const endpointUrl = { check: 'http-url' };

export const traceVariables = {
  OTEL_EXPORTER_OTLP_ENDPOINT: Type.String({
    ...endpointUrl,
    shown: 'http://127.0.0.1:4318',
    description:
      'Where traces are sent, by OTLP over HTTP, under /v1/traces; without it, and without the next one, there are none.',
  }),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: Type.String({
    ...endpointUrl,
    shown: 'http://127.0.0.1:4318/v1/traces',
    description: 'The same for traces alone, taken as it is.',
  }),
  OTEL_EXPORTER_OTLP_HEADERS: Type.String({
    secret: true,
    check: 'key-values',
    shown: 'authorization=Bearer%20the-key-of-the-collector',
    description: 'Headers for the collector: name=value, percent-encoded, with commas between.',
  }),
  OTEL_EXPORTER_OTLP_PROTOCOL: Type.Enum(['http/protobuf', 'http/json'], {
    default: 'http/protobuf',
    description: 'How traces are written.',
  }),
  OTEL_EXPORTER_OTLP_TIMEOUT: Type.Integer({
    minimum: 100,
    maximum: 60_000,
    default: 10_000,
    description: 'Milliseconds for one request to the collector.',
  }),
  OTEL_TRACES_SAMPLER: Type.Enum(
    ['parentbased_traceidratio', 'parentbased_always_on', 'parentbased_always_off'],
    {
      default: 'parentbased_traceidratio',
      description:
        "Which traces are kept: what the caller's traceparent says, and without one so many as the next variable says, all, or none.",
    },
  ),
  OTEL_TRACES_SAMPLER_ARG: Type.Number({
    minimum: 0,
    maximum: 1,
    default: 0.1,
    description: 'The share of traces that are kept of those that begin here: 0.1 is 10 %.',
  }),
  OTEL_RESOURCE_ATTRIBUTES: Type.String({
    check: 'key-values',
    shown: 'deployment.environment.name=production',
    description:
      'What every span says beside service.name, service.instance.id and service.version: name=value, percent-encoded, with commas between.',
  }),
  OTEL_BSP_MAX_QUEUE_SIZE: Type.Integer({
    minimum: 1,
    maximum: 100_000,
    default: 2048,
    description: 'Spans that one process holds until they are sent; past it they are dropped.',
  }),
  OTEL_BSP_MAX_EXPORT_BATCH_SIZE: Type.Integer({
    minimum: 1,
    maximum: 10_000,
    default: 512,
    description: 'Spans in one request to the collector.',
  }),
  OTEL_BSP_SCHEDULE_DELAY: Type.Integer({
    minimum: 10,
    maximum: 60_000,
    default: 5000,
    description: 'Milliseconds after which spans are sent although there are not so many yet.',
  }),
  OTEL_SDK_DISABLED: Type.Boolean({
    default: false,
    description: 'No traces, whatever else is set.',
  }),
};

/** Of every process but the demo and the smoke test. */
export const traceNames = Object.keys(traceVariables) as (keyof typeof traceVariables)[];

/** Where spans go; undefined: nowhere, and there shall be no SDK. */
export function tracesUrl(config: {
  readonly otelExporterOtlpEndpoint?: string | undefined;
  readonly otelExporterOtlpTracesEndpoint?: string | undefined;
  readonly otelSdkDisabled?: boolean;
}): string | undefined {
  const { otelExporterOtlpEndpoint: base, otelExporterOtlpTracesEndpoint: own } = config;
  if (config.otelSdkDisabled === true) return undefined;
  return own ?? (base === undefined ? undefined : `${base.replace(/\/+$/, '')}/v1/traces`);
}
