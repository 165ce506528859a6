import { type Attributes, type Context, type Link, trace } from '@opentelemetry/api';
import { getNodeAutoInstrumentations } from '@opentelemetry/auto-instrumentations-node';
import { parseKeyPairsIntoRecord, W3CTraceContextPropagator } from '@opentelemetry/core';
import { type Resource, resourceFromAttributes } from '@opentelemetry/resources';
import { NodeSDK } from '@opentelemetry/sdk-node';
import {
  ParentBasedSampler,
  type Sampler,
  SamplingDecision,
  type SamplingResult,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace';
import type { ApiConfig } from './config.ts';
import type { Logger } from './logger.ts';
import { type SpanDropReason, SpanQueue } from './span-queue.ts';
import { isSampled, rareKey, useTracer } from './tracing.ts';
import { version } from './version.ts';

export type TelemetryConfig = Pick<ApiConfig, Extract<keyof ApiConfig, `otel${string}`>> &
  Pick<ApiConfig, 'instance' | 'shutdownTimeoutMs'>;

export interface TelemetryOptions {
  readonly config: TelemetryConfig;
  readonly service: string;
  readonly env: NodeJS.ProcessEnv;
  readonly logger: Pick<Logger, 'warn' | 'info'>;
  readonly onDropped: (reason: SpanDropReason, count: number) => void;
}

export interface Telemetry {
  /** Sends what is left, within a fifth of the time for a shutdown and 5 s, and until the deadline at the latest. */
  stop(deadline: AbortSignal): Promise<void>;
}

const textBytesMax = 2048;
const linksMax = 128;
const flushMsMax = 5000;

/**
 * Instrumented by themselves. Not `http`: with one trace in ten kept, a publish took 570 µs of CPU with it, 362 without it and 306
 * without traces (2 busy cores, 64 connections, interleaved, before apps/api/server-span.ts took its place). What else there is in
 * the package says nothing that helps.
 */
const instrumented = ['undici', 'pg'].join();

/**
 * Starts the SDK: to be called before anything loads `pg` or an HTTP server, because their instrumentation changes them as they are
 * loaded. Throws for headers that HTTP does not allow.
 */
export function startTelemetry(url: string, options: TelemetryOptions): Telemetry {
  const { config, env } = options;
  // read by the package itself, which has no other way to name a few out of so many; who sets it knows why
  env['OTEL_NODE_ENABLED_INSTRUMENTATIONS'] ??= instrumented;
  const queue = makeQueue(url, options);
  const sdk = new NodeSDK({
    autoDetectResources: false,
    resource: resourceOf(options),
    sampler: createSampler(ratioOf(config)),
    spanProcessors: [queue],
    spanLimits: { attributeValueLengthLimit: textBytesMax, linkCountLimit: linksMax },
    textMapPropagator: new W3CTraceContextPropagator(),
    // empty, and not absent: their defaults send them too
    metricReaders: [],
    logRecordProcessors: [],
    instrumentations: [getNodeAutoInstrumentations(instrumentationOptions)],
  });
  sdk.start();
  useTracer(trace.getTracer('event-broker', version));
  const flushMs = Math.min(flushMsMax, config.shutdownTimeoutMs / 5);
  return {
    async stop(deadline) {
      await queue.close(AbortSignal.any([deadline, AbortSignal.timeout(flushMs)]));
      useTracer(undefined);
      await sdk.shutdown();
    },
  };
}

function makeQueue(url: string, { config, logger, onDropped }: TelemetryOptions): SpanQueue {
  return new SpanQueue({
    url,
    headers: headersOf(config),
    protocol: config.otelExporterOtlpProtocol,
    timeoutMs: config.otelExporterOtlpTimeout,
    queueMax: config.otelBspMaxQueueSize,
    batchMax: config.otelBspMaxExportBatchSize,
    delayMs: config.otelBspScheduleDelay,
    onDropped,
    logger,
  });
}

function headersOf({ otelExporterOtlpHeaders }: TelemetryConfig): Record<string, string> {
  const headers = parseKeyPairsIntoRecord(otelExporterOtlpHeaders);
  try {
    return Object.fromEntries(new Headers(headers));
  } catch {
    // without the text: it is a secret
    throw new Error('OTEL_EXPORTER_OTLP_HEADERS: has a name or a value that HTTP does not allow');
  }
}

function resourceOf({ config, service }: TelemetryOptions): Resource {
  return resourceFromAttributes({
    ...parseKeyPairsIntoRecord(config.otelResourceAttributes),
    'service.name': `broker-${service}`,
    'service.instance.id': config.instance,
    'service.version': version,
  });
}

function ratioOf(config: TelemetryConfig): number {
  switch (config.otelTracesSampler) {
    case 'parentbased_always_on':
      return 1;
    case 'parentbased_always_off':
      return 0;
    default:
      return config.otelTracesSamplerArg;
  }
}

/**
 * What has a parent follows it. A trace that begins here and links to others is kept when one of those is: with a share of its
 * own, a story of three traces would be whole once in a thousand. The rest by the share, and what is rare always.
 */
export function createSampler(ratio: number): Sampler {
  const byRatio = new TraceIdRatioBasedSampler(ratio);
  const root: Sampler = {
    // the interface of the SDK
    // oxlint-disable-next-line max-params
    shouldSample(
      context: Context,
      traceId: string,
      _name,
      _kind,
      _attributes,
      links: Link[],
    ): SamplingResult {
      const isKept =
        links.length > 0
          ? links.some((link) => isSampled(link.context))
          : ratio > 0 && context.getValue(rareKey) === true;
      if (isKept) return { decision: SamplingDecision.RECORD_AND_SAMPLED };
      return links.length > 0
        ? { decision: SamplingDecision.NOT_RECORD }
        : byRatio.shouldSample(context, traceId);
    },
    toString: () => `Linked{${byRatio.toString()}}`,
  };
  return new ParentBasedSampler({ root });
}

const calledFunction = /\bfrom (broker\.\w+)\(/;

const instrumentationOptions: Parameters<typeof getNodeAutoInstrumentations>[0] = {
  '@opentelemetry/instrumentation-undici': {
    requireParentforSpans: true,
    // many a receiver's path or query is its password
    startSpanHook: ({ origin }): Attributes => ({
      'url.full': `${origin}/REDACTED`,
      'url.path': undefined,
      'url.query': undefined,
    }),
  },
  // not the parameters of a statement, which is its default
  '@opentelemetry/instrumentation-pg': {
    requireParentSpan: true,
    ignoreConnectSpans: true,
    // most statements are the call of a function, and its name says more than SELECT
    requestHook: (span, { query }) => {
      const [, called] = span.isRecording() ? (calledFunction.exec(query.text) ?? []) : [];
      if (called !== undefined) span.updateName(called);
    },
  },
};
