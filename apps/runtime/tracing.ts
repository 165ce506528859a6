import {
  type Attributes,
  type Context,
  context,
  createTraceState,
  INVALID_SPAN_CONTEXT,
  INVALID_TRACEID,
  type Link,
  propagation,
  ROOT_CONTEXT,
  type Span,
  type SpanContext,
  SpanKind,
  type SpanOptions,
  SpanStatusCode,
  trace,
  TraceFlags,
  type Tracer,
} from '@opentelemetry/api';

export type { Attributes, Link, Span, SpanContext };

export interface Spanned {
  readonly kind?: 'client' | 'producer' | 'consumer';
  readonly attributes?: Attributes;
  /** What it has to do with, beside its parent: see `linksTo`. */
  readonly links?: readonly Link[];
  /**
   * Absent: whatever span is active. `root`: a trace of its own. `kept`: the active one, but a trace of its own where that one
   * is not kept and something that is linked to is, so that a story does not end there.
   */
  readonly parent?: SpanContext | 'root' | 'kept' | undefined;
  /** Kept whatever the ratio is, unless that is 0: there are few of its kind, and each tells something. */
  readonly isRare?: boolean;
}

/** Of one span. */
const linksMax = 128;

const kinds = {
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER,
};
const noSpan = trace.wrapSpanContext(INVALID_SPAN_CONTEXT);
/** Where the sampler finds `isRare`. */
export const rareKey = Symbol.for('event_broker.rare');

/** Undefined where there is no SDK: everything here then does nothing, at the price of a comparison. */
let tracer: Tracer | undefined;

/** Called by who starts an SDK; undefined ends it. */
export function useTracer(made: Tracer | undefined): void {
  tracer = made;
}

/**
 * Runs something inside a span, which ends with it, or with its promise. What is thrown is passed on and marks the span. A child of
 * the active span may tell its options by a function: most requests are not kept, and then it is not asked.
 */
export function withSpan<Result>(
  name: string,
  spanned: Spanned | (() => Spanned),
  run: (span: Span) => Result,
): Result {
  if (tracer === undefined) return run(noSpan);
  const isChild = typeof spanned === 'function' || spanned.parent === undefined;
  // what is inside of a span that is not kept is not kept either
  if (isChild && isInUnkept()) return run(noSpan);
  const options = typeof spanned === 'function' ? spanned() : spanned;
  const parent = parentOf(options);
  const span = tracer.startSpan(name, optionsOf(options), parent);
  return context.with(trace.setSpan(parent, span), () => {
    let isPending = false;
    try {
      const result = run(span);
      if (!(result instanceof Promise)) return result;
      isPending = true;
      return result
        .catch((error: unknown) => {
          noteError(span, error);
          throw error;
        })
        .finally(() => span.end()) as Result;
    } catch (error) {
      noteError(span, error);
      throw error;
    } finally {
      if (!isPending) span.end();
    }
  });
}

/**
 * A span of something that has just ended, for what is only known to be worth one afterwards.
 * @param startedAt by performance.now()
 * @returns its context, for links to it; undefined without an SDK
 */
export function recordSpan(
  name: string,
  options: Spanned & { readonly startedAt: number; readonly error?: string | undefined },
): SpanContext | undefined {
  if (tracer === undefined) return undefined;
  // The wall clock, carried back: the origin of performance.now() drifts away from it in a process that lives for weeks.
  const now = Date.now();
  const startTime = now - (performance.now() - options.startedAt);
  const span = tracer.startSpan(name, { ...optionsOf(options), startTime }, parentOf(options));
  if (options.error !== undefined) markFailed(span, options.error);
  span.end(now);
  return span.spanContext();
}

/** Whether spans are made at all. */
export function isTracing(): boolean {
  return tracer !== undefined;
}

/** A span whose pieces run one by one, with other things between them. */
export interface OpenSpan {
  readonly span: Span;
  run(piece: () => void): void;
}

/** The span of a request that came, in the trace that its W3C headers say. What is malformed there is ignored. */
export function openServerSpan(name: string, headers: object): OpenSpan {
  const parent = propagation.extract(ROOT_CONTEXT, headers);
  const span = tracer?.startSpan(name, { kind: SpanKind.SERVER }, parent) ?? noSpan;
  const within = trace.setSpan(parent, span);
  return { span, run: (piece) => context.with(within, piece) };
}

/** Runs something that belongs to no span: what many share, or what outlives who asked for it. */
export function outsideSpan<Result>(run: () => Result): Result {
  return tracer === undefined ? run() : context.with(ROOT_CONTEXT, run);
}

/** The attribute `error.type`, and the status that goes with it. `type` is one of few words, or a number. */
export function markFailed(span: Span, type: string): void {
  span.setAttribute('error.type', type);
  span.setStatus({ code: SpanStatusCode.ERROR });
}

/** The active span, where there is one that is kept. */
export function recordingSpan(): Span | undefined {
  if (tracer === undefined) return undefined;
  const span = trace.getActiveSpan();
  return span?.isRecording() === true ? span : undefined;
}

/** Of the active span, kept or not. */
export function activeSpanContext(): SpanContext | undefined {
  if (tracer === undefined) return undefined;
  const active = trace.getActiveSpan()?.spanContext();
  return active?.traceId === INVALID_TRACEID ? undefined : active;
}

/** The trace of the active span where it is kept, for exemplars: what is not kept cannot be looked up. */
export function activeTraceId(): string | undefined {
  const active = activeSpanContext();
  return active !== undefined && isSampled(active) ? active.traceId : undefined;
}

/** The members of a log line that say to which span it belongs; none outside of spans. */
export function traceMembers(): { trace_id?: string; span_id?: string } {
  const active = activeSpanContext();
  return active === undefined ? {} : { trace_id: active.traceId, span_id: active.spanId };
}

/** W3C Trace Context as an event keeps it. */
export interface StoredTrace {
  readonly traceparent: string | null | undefined;
  readonly tracestate: string | null | undefined;
}

const stored = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/;

/** The creation context of an event; undefined where it has none. */
export function creationContext(event: StoredTrace): SpanContext | undefined {
  const { traceparent, tracestate } = event;
  if (tracer === undefined || traceparent == null) return undefined;
  const [, traceId, spanId, flags] = stored.exec(traceparent) ?? [];
  if (traceId === undefined || spanId === undefined || flags === undefined) return undefined;
  return {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16),
    isRemote: true,
    // the one of the core package would have the SDK's modules loaded where nothing is traced
    // eslint-disable-next-line typescript/no-deprecated
    ...(tracestate != null && { traceState: createTraceState(tracestate) }),
  };
}

/** The active span as an event keeps it; undefined outside of spans. */
export function activeTrace(): { traceparent: string; tracestate?: string } | undefined {
  const active = activeSpanContext();
  if (active === undefined) return undefined;
  const flags = active.traceFlags.toString(16).padStart(2, '0');
  const traceparent = `00-${active.traceId}-${active.spanId}-${flags}`;
  const tracestate = active.traceState?.serialize();
  return tracestate ? { traceparent, tracestate } : { traceparent };
}

export interface LinkTo {
  readonly context: SpanContext | undefined;
  readonly attributes?: Attributes;
}

/**
 * Links to those of these contexts that are kept, 128 at most: the others lead to nothing that can be looked at. Where none is kept
 * one of them stands for all, so that the sampler knows that there is nothing to follow.
 */
export function linksTo(targets: Iterable<LinkTo>): Link[] {
  if (tracer === undefined) return [];
  const links: Link[] = [];
  let other: Link | undefined;
  for (const { context: target, attributes } of targets) {
    if (target === undefined) continue;
    if (!isSampled(target)) other ??= { context: target };
    else links.push({ context: target, ...(attributes && { attributes }) });
    if (links.length === linksMax) break;
  }
  return links.length === 0 && other !== undefined ? [other] : links;
}

export function isSampled({ traceFlags }: SpanContext): boolean {
  return (traceFlags & TraceFlags.SAMPLED) !== 0;
}

function isInUnkept(): boolean {
  const active = activeSpanContext();
  return active !== undefined && !isSampled(active);
}

function parentOf({ parent, isRare, links = [] }: Spanned): Context {
  let base = context.active();
  if (typeof parent === 'object') base = trace.setSpanContext(ROOT_CONTEXT, parent);
  else if (parent === 'root') base = ROOT_CONTEXT;
  else if (parent === 'kept' && activeTraceId() === undefined) {
    if (links.some((link) => isSampled(link.context))) base = ROOT_CONTEXT;
  }
  return isRare === true ? base.setValue(rareKey, true) : base;
}

function optionsOf({ kind, attributes, links }: Spanned): SpanOptions {
  return {
    kind: kind === undefined ? SpanKind.INTERNAL : kinds[kind],
    ...(attributes && { attributes }),
    ...(links && { links: [...links] }),
  };
}

function noteError(span: Span, error: unknown): void {
  if (!span.isRecording()) return;
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  const name = error instanceof Error ? error.name : 'Error';
  markFailed(span, typeof code === 'string' ? code : name);
}
