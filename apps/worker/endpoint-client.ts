import { isIP } from 'node:net';
import { EgressDenied, type EgressPolicy } from '#runtime/egress.ts';
import type { PushFailure } from '#runtime/metrics.ts';
import { EndpointConnections } from './endpoint-connections.ts';
import type { EndpointRequest, EndpointResult } from './endpoint-request.ts';
import { PendingRequest } from './pending-request.ts';

export type { EndpointRequest, EndpointResult } from './endpoint-request.ts';

export interface EndpointClientOptions {
  readonly policy: EgressPolicy;
  /** Connections that are kept open for the next request, over all origins (1,024). */
  readonly idleConnectionsMax?: number;
}

const IDLE_CONNECTIONS_MAX = 1024;

/**
 * Sends requests over HTTP/1.1 to addresses that the policy allows, one at a time on each connection, and keeps idle
 * connections for the next. Redirects are answers like others. A request is written once: where its connection breaks
 * nobody knows what the endpoint has done, and what then is for the caller to decide.
 */
export class EndpointClient implements AsyncDisposable {
  readonly #policy: EgressPolicy;
  readonly #connections: EndpointConnections;
  // One listener per signal: each further one would be searched for in a list.
  readonly #abortedBy = new WeakMap<AbortSignal, Set<PendingRequest>>();
  #isClosed = false;

  constructor({ policy, idleConnectionsMax = IDLE_CONNECTIONS_MAX }: EndpointClientOptions) {
    this.#policy = policy;
    this.#connections = new EndpointConnections(policy, idleConnectionsMax);
  }

  /** Connections with a request under way and without, and to how many origins those are. */
  get connections(): {
    readonly busy: number;
    readonly idle: number;
    readonly idleOrigins: number;
  } {
    const { busyCount, idleCount, originCount } = this.#connections;
    return { busy: busyCount, idle: idleCount, idleOrigins: originCount };
  }

  /** Never rejects. */
  async send(request: EndpointRequest): Promise<EndpointResult> {
    const { url, headers, body, timeoutMs, signal } = request;
    if (this.#isClosed) return failure('the client is closed', 'aborted');
    if (signal?.aborted === true) return failure('aborted', 'aborted');
    const parsed = URL.parse(url);
    if (parsed === null) return failure('endpoint is no URL', 'not_allowed');
    const { origin, hostname, pathname, search } = parsed;
    let connection = this.#connections.takeIdle(origin);
    if (connection === undefined) {
      const fault = this.#faultOf(url, hostname);
      if (fault !== undefined) return failure(fault, 'not_allowed');
      connection = this.#connections.open(origin);
    }
    const pending = new PendingRequest({
      timeoutMs,
      connection,
      connections: this.#connections,
      abortedTogether: signal === undefined ? undefined : this.#abortedTogether(signal),
    });
    const path = search === '' ? pathname : pathname + search;
    connection.dispatch({ method: 'POST', path, headers, body }, pending);
    return pending.result;
  }

  /** Takes no more requests, waits for those under way and closes all connections. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#connections.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** It was asked when the endpoint was set; since then the policy may have changed, or a hand have written it. */
  #faultOf(url: string, hostname: string): string | undefined {
    const fault = this.#policy.endpointFault(url);
    if (fault === undefined) return undefined;
    const address = hostname.startsWith('[') ? hostname.slice(1, -1) : hostname;
    return isIP(address) !== 0 && !this.#policy.isAllowed(address)
      ? new EgressDenied(address).message
      : `endpoint ${fault}`;
  }

  #abortedTogether(signal: AbortSignal): Set<PendingRequest> {
    let pending = this.#abortedBy.get(signal);
    if (pending === undefined) {
      const together = new Set<PendingRequest>();
      signal.addEventListener('abort', () => together.forEach((each) => each.abort()), {
        once: true,
      });
      this.#abortedBy.set(signal, together);
      pending = together;
    }
    return pending;
  }
}

function failure(error: string, reason: PushFailure): EndpointResult {
  return { kind: 'failure', error, reason, durationMs: 0 };
}
