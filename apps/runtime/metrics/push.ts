import { Counter, Histogram } from 'prom-client';
import { requestSeconds } from './buckets.ts';
import { gaugesOf, type MetricSource } from './source.ts';

/** What a push request came to: a class of HTTP status, or no answer at all. */
export type PushResult = '2xx' | '3xx' | '4xx' | '5xx' | 'failed';

/**
 * Why there was no answer: `reset`: the connection was closed; `not_allowed`: the address or the endpoint; `protocol`: what came
 * is no answer in HTTP/1.1; `aborted`: this process had no more time.
 */
export type PushFailure =
  | 'timeout'
  | 'dns'
  | 'connect'
  | 'tls'
  | 'reset'
  | 'not_allowed'
  | 'protocol'
  | 'aborted'
  | 'other';

/** Requests to endpoints. */
export function createPushMetrics(source: MetricSource) {
  const { registry, subscriptions } = source;
  const registers = [registry];
  const requests = new Counter({
    name: 'broker_push_requests_total',
    help: 'Requests sent to endpoints, by what they came to',
    labelNames: ['subscription', 'result'],
    registers,
  });
  const failures = new Counter({
    name: 'broker_push_failures_total',
    help: 'Requests to endpoints that got no answer, by why',
    labelNames: ['error'],
    registers,
  });
  const duration = new Histogram({
    name: 'broker_push_request_duration_seconds',
    help: 'Duration of requests to endpoints, until the answer was read',
    labelNames: ['result'],
    buckets: requestSeconds,
    registers,
  });
  const gauge = gaugesOf(source);
  const inFlight = gauge('broker_push_in_flight', 'Requests to endpoints that are under way');
  const buffered = gauge('broker_push_buffer_events', 'Events that are leased and wait for a turn');
  const open = gauge('broker_push_breakers_open', 'Subscriptions whose endpoint is only probed');
  return {
    /** An endpoint was asked; `failure`: why there was no answer. */
    recordPushRequest(request: {
      subscription: string;
      result: PushResult;
      failure?: PushFailure | undefined;
      durationSeconds: number;
    }): void {
      const { result, failure, durationSeconds } = request;
      requests.inc({ subscription: subscriptions.labelOf(request.subscription), result });
      duration.observe({ result }, durationSeconds);
      if (failure !== undefined) failures.inc({ error: failure });
    },
    /** What this worker has in hand. */
    setPushState(state: { inFlight: number; buffered: number; breakersOpen: number }): void {
      inFlight.set(state.inFlight);
      buffered.set(state.buffered);
      open.set(state.breakersOpen);
    },
  };
}
