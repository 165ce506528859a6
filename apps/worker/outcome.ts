import type { EndpointResult } from './endpoint-client.ts';

/** What becomes of a delivery after an attempt, as it is settled. */
export interface Outcome {
  readonly outcome: 'acked' | 'nacked' | 'deferred' | 'rejected';
  /** As the endpoint asked for; absent: the subscription's backoff. */
  readonly delayMs?: number;
  /** Short, and free of what was sent: `HTTP 503`. */
  readonly error?: string;
  /**
   * What it says about the endpoint. `works`: it took the event, or said what is wrong with it. `fails`: the next event would
   * most likely fare the same. `busy`: it wants to be left alone for `delayMs`. `gone`: for good.
   */
  readonly endpoint: 'works' | 'fails' | 'busy' | 'gone';
}

export interface OutcomePolicy {
  /** Whether answers that would be the same next time, such as 400, are tried again. */
  readonly retryClientErrors: boolean;
}

/** Client errors that may pass: not found (yet), request timeout, conflict, too many requests. */
const PASSING_CLIENT_ERRORS: ReadonlySet<number> = new Set([404, 408, 409, 429]);
/** Client errors that are about who asks, where and how often, and not about this event. */
const ENDPOINT_CLIENT_ERRORS: ReadonlySet<number> = new Set([401, 403, 404, 407, 408, 429]);
/** `Retry-After: 0` asks for nothing: the backoff is what keeps an endpoint from being asked again at once. */
const DEFERRAL_MS_MIN = 1000;

/**
 * Decides by RFC 9110's classes: a code that is not known counts as the x00 of its class, and one outside of 200 to 599 as
 * a server error (section 15). Redirects are not followed: the endpoint is what was checked.
 */
export function classify(result: EndpointResult, policy: OutcomePolicy): Outcome {
  if (result.kind === 'failure') {
    return { outcome: 'nacked', error: result.error, endpoint: 'fails' };
  }
  const { status, retryAfterMs = 0 } = result;
  if (status >= 200 && status < 300) return { outcome: 'acked', endpoint: 'works' };
  const error = `HTTP ${status}`;
  // Not the event's fault: it keeps its attempt, and waits for another endpoint.
  if (status === 410) return { outcome: 'deferred', delayMs: 0, error, endpoint: 'gone' };
  if ((status === 429 || status === 503) && retryAfterMs >= DEFERRAL_MS_MIN) {
    return { outcome: 'deferred', delayMs: retryAfterMs, error, endpoint: 'busy' };
  }
  const isClientError = status >= 400 && status < 500;
  const isFinal = isClientError && !PASSING_CLIENT_ERRORS.has(status);
  return {
    outcome: isFinal && !policy.retryClientErrors ? 'rejected' : 'nacked',
    error,
    endpoint: isClientError && !ENDPOINT_CLIENT_ERRORS.has(status) ? 'works' : 'fails',
  };
}
