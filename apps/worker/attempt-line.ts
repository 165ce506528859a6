import type { Held } from './delivery-queue.ts';
import type { EndpointResult } from './endpoint-client.ts';
import type { Outcome } from './outcome.ts';
import type { PushSubscription } from './push-directory.ts';

/** The one line of an attempt, as deploy/logs.md has it. What does not apply is undefined, and left out. */
export function attemptLine(
  { event }: Pick<Held, 'event'>,
  { topic, name }: Pick<PushSubscription, 'topic' | 'name'>,
  { result, outcome }: { readonly result: EndpointResult; readonly outcome: Outcome },
) {
  return {
    topic,
    subscription: name,
    event_id: event.event_id,
    attempt: event.attempt,
    generation: event.generation,
    outcome: outcome.outcome,
    status: result.kind === 'answer' ? result.status : undefined,
    error: outcome.error,
    duration_ms: Math.round(result.durationMs * 10) / 10,
    delay_ms: outcome.delayMs,
  };
}

/** What goes well is said only to who asks for it: it may be thousands in a second. */
export function attemptLevel({ outcome }: Outcome): 'debug' | 'warn' {
  return outcome === 'acked' ? 'debug' : 'warn';
}
