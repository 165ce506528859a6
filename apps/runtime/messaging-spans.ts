import {
  activeSpanContext,
  type Attributes,
  creationContext,
  type Link,
  linksTo,
  recordingSpan,
  recordSpan,
  type Span,
  type SpanContext,
  type Spanned,
  type StoredTrace,
  withSpan,
} from './tracing.ts';

// OpenTelemetry's conventions for messaging: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/

export interface MessagingOperation {
  /** With the destination it makes the name of the span. */
  readonly operation: string;
  readonly type?: 'send' | 'receive' | 'process' | 'settle';
  /** A topic where something is sent, else a subscription. */
  readonly destination: string;
  /** Of a batch; absent where there is one message by the nature of the operation. */
  readonly messages?: number;
}

/** The attributes that every span of the conventions has. */
export function messagingAttributes(of: MessagingOperation): Attributes {
  const isOfSubscription = of.type !== undefined && of.type !== 'send';
  return {
    'messaging.system': 'event_broker',
    'messaging.operation.name': of.operation,
    'messaging.destination.name': of.destination,
    ...(of.type !== undefined && { 'messaging.operation.type': of.type }),
    ...(isOfSubscription && { 'messaging.destination.subscription.name': of.destination }),
    ...(of.messages !== undefined && { 'messaging.batch.message_count': of.messages }),
  };
}

/** An event as it was claimed, as far as spans tell of it. */
export interface ReceivedEvent extends StoredTrace {
  readonly event_id: string;
  readonly attempt: number;
}

/** What differs inside a batch stands at the link. */
export function messageAttributes(event: ReceivedEvent): Attributes {
  return {
    'messaging.message.id': event.event_id,
    'event_broker.delivery_attempt': event.attempt,
  };
}

/** To the creation contexts, of the events that have one. */
export function creationLinks(events: readonly ReceivedEvent[]): Link[] {
  return linksTo(
    (function* links() {
      for (const event of events) {
        const context = creationContext(event);
        if (context !== undefined) yield { context, attributes: messageAttributes(event) };
      }
    })(),
  );
}

/** The span of a claim that found something, of one subscription; made afterwards, because most claims find nothing. */
export function recordReceive(claim: {
  readonly subscription: string;
  readonly events: readonly ReceivedEvent[];
  /** By performance.now(). */
  readonly startedAt: number;
  readonly parent: Spanned['parent'];
}): SpanContext | undefined {
  const { subscription, events, startedAt, parent } = claim;
  const links = creationLinks(events);
  const of = { operation: 'receive', type: 'receive', destination: subscription } as const;
  return recordSpan(`receive ${subscription}`, {
    kind: 'client',
    attributes: messagingAttributes({ ...of, messages: events.length }),
    links,
    parent,
    startedAt,
  });
}

/** One of those that a batch does something for together: the span in which it was asked for, itself where it is kept. */
export interface BatchPart {
  readonly trace: SpanContext | undefined;
  readonly span: Span | undefined;
}

/** To be kept by what joins a batch. */
export function partHere(): BatchPart {
  const trace = activeSpanContext();
  return { trace, span: trace === undefined ? undefined : recordingSpan() };
}

/** Runs the one call of a batch in a span: inside the span of who is alone in it, else a trace of its own; with links from and to each. */
export function withBatchSpan<Result>(
  of: MessagingOperation,
  parts: readonly BatchPart[],
  run: () => Result,
): Result {
  // of requests that are not kept
  if (!parts.some(({ span }) => span) && parts.some(({ trace }) => trace)) return run();
  const alone = parts.length === 1 ? parts[0]?.trace : undefined;
  const options: Spanned = {
    ...(of.type === 'settle' && { kind: 'client' }),
    parent: alone ?? 'root',
    links: linksTo(parts.map(({ trace }) => ({ context: trace }))),
    attributes: messagingAttributes(of),
  };
  return withSpan(`${of.operation} ${of.destination}`, options, (span) => {
    if (alone === undefined && span.isRecording()) {
      const context = span.spanContext();
      for (const part of parts) part.span?.addLink({ context });
    }
    return run();
  });
}
