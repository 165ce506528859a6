import { EgressDenied, type EgressPolicy } from '#runtime/egress.ts';
import { Problem } from './problems.ts';

/** Longest wait for the addresses of an endpoint's name. */
const resolveTimeoutMs = 2000;

/**
 * Refuses an endpoint that push may not reach, with the problem `endpoint_not_allowed`. A name that does not resolve now is
 * taken: it may be made later, and what counts are the addresses that a delivery connects to.
 */
export async function checkEndpoint(
  egress: Pick<EgressPolicy, 'endpointFault' | 'resolve'>,
  endpoint: string,
): Promise<void> {
  const fault = egress.endpointFault(endpoint);
  if (fault !== undefined) throw notAllowed(`endpoint ${fault}.`);
  const { hostname } = new URL(endpoint);
  try {
    await egress.resolve(hostname, { timeoutMs: resolveTimeoutMs });
  } catch (error) {
    if (!(error instanceof EgressDenied)) return;
    throw notAllowed(
      `endpoint must not lead to private or loopback addresses alone, as ${hostname} does; ALLOW_PRIVATE_TARGETS opens ranges.`,
    );
  }
}

function notAllowed(detail: string): Problem {
  return new Problem('endpoint_not_allowed', detail, {
    errors: [{ detail, pointer: '/push/endpoint' }],
  });
}
