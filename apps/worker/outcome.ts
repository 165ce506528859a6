import type { EndpointResult } from './endpoint-client.ts';

/** What becomes of a delivery after an attempt, as it is settled. */
export interface Outcome {
  readonly outcome: 'acked' | 'nacked' | 'deferred' | 'rejected';
  /** As the endpoint asked for; absent: the subscription's backoff. */
  readonly delayMs?: number;
  /** Short, and free of what was sent: `HTTP 503`. */
  readonly error?: string;
  /** The endpoint is gone for good: nothing more is to be sent there. */
  readonly disables: boolean;
}

export interface OutcomePolicy {
  /** Whether answers that would be the same next time, such as 400, are tried again. */
  readonly retryClientErrors: boolean;
}

/** Client errors that may pass: not found (yet), request timeout, conflict, too many requests. */
const PASSING_CLIENT_ERRORS: ReadonlySet<number> = new Set([404, 408, 409, 429]);

/**
 * Decides by RFC 9110's classes: a code that is not known counts as the x00 of its class, and one outside of 200 to 599 as
 * a server error (section 15). Redirects are not followed: the endpoint is what was checked.
 */
export function classify(result: EndpointResult, policy: OutcomePolicy): Outcome {
  if (result.kind === 'failure') return { outcome: 'nacked', error: result.error, disables: false };
  const { status, retryAfterMs } = result;
  if (status >= 200 && status < 300) return { outcome: 'acked', disables: false };
  const error = `HTTP ${status}`;
  if (status === 410) return { outcome: 'nacked', error, disables: true };
  if ((status === 429 || status === 503) && retryAfterMs !== undefined) {
    return { outcome: 'deferred', delayMs: retryAfterMs, error, disables: false };
  }
  const isFinal = status >= 400 && status < 500 && !PASSING_CLIENT_ERRORS.has(status);
  return {
    outcome: isFinal && !policy.retryClientErrors ? 'rejected' : 'nacked',
    error,
    disables: false,
  };
}
