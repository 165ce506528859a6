import { messageAttributes, messagingAttributes } from '#runtime/messaging-spans.ts';
import { creationContext, linksTo, markFailed, recordingSpan, withSpan } from '#runtime/tracing.ts';
import type { Held } from './delivery-queue.ts';
import type { EndpointResult } from './endpoint-client.ts';
import type { Outcome } from './outcome.ts';

/**
 * One attempt as a trace of its own, which links to where the event was made and to the claim: ten subscriptions with ten
 * attempts each over days would not fit into the trace of their publish.
 */
export function withProcessSpan<Result>(
  subscription: string,
  { event, claim }: Held,
  run: () => Promise<Result>,
): Promise<Result> {
  const message = messageAttributes(event);
  const links = linksTo([
    { context: creationContext(event), attributes: message },
    { context: claim.trace },
  ]);
  const attributes = {
    ...messagingAttributes({ operation: 'process', type: 'process', destination: subscription }),
    ...message,
    'cloudevents.event_type': event.type,
  };
  const options = { kind: 'consumer', parent: 'root', links, attributes } as const;
  return withSpan(`process ${subscription}`, options, run);
}

/** What the attempt of the active span came to. */
export function noteAttempt(result: EndpointResult, { outcome }: Outcome): void {
  const span = recordingSpan();
  if (span === undefined) return;
  span.setAttribute('event_broker.outcome', outcome);
  if (outcome === 'acked') return;
  markFailed(span, result.kind === 'answer' ? String(result.status) : result.reason);
}
