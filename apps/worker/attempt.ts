import type { Database } from '#db/client.ts';
import { disableSubscription } from '#db/push-subscriptions.ts';
import type { Settlement } from '#db/settle.ts';
import type { Logger } from '#runtime/logger.ts';
import type { Metrics, PushResult } from '#runtime/metrics.ts';
import { exemplarTrace } from '#runtime/metrics/exemplar.ts';
import { attemptLevel, attemptLine } from './attempt-line.ts';
import type { DeliveryQueue, Held } from './delivery-queue.ts';
import type { EndpointClient, EndpointResult } from './endpoint-client.ts';
import { classify, type Outcome } from './outcome.ts';
import { noteAttempt } from './process-span.ts';
import type { PushSubscription } from './push-directory.ts';
import { buildRequest } from './push-request.ts';

export interface AttemptOptions {
  readonly db: Database;
  readonly client: Pick<EndpointClient, 'send'>;
  readonly metrics: Pick<Metrics, 'recordPushRequest' | 'recordDelivered'>;
  readonly logger: Pick<Logger, 'debug' | 'info' | 'warn' | 'error'>;
  /** Aborted when the process has no more time for answers. */
  readonly signal: AbortSignal;
}

const disabledWithinMs = 5000;

/** What a delivery came to. */
export interface DeliverySettlement extends Settlement {
  /** Of a trace that shows it. */
  readonly traceId?: string | undefined;
}

/** One attempt: prepare → sign → send → classify → learn from it. What it came to is for the caller to settle. */
export async function attemptDelivery(
  queue: DeliveryQueue,
  held: Held,
  subscription: PushSubscription,
  options: AttemptOptions,
): Promise<DeliverySettlement> {
  const { client, metrics, signal } = options;
  const now = databaseTime(held);
  const { event } = held;
  const traceId = exemplarTrace(event.traceparent);
  metrics.recordDelivered({
    subscription: subscription.name,
    events: 1,
    redelivered: event.attempt > 1 ? 1 : 0,
    waitSeconds: (now - Date.parse(event.due_at)) / 1000,
    traceId,
  });
  const request = buildRequest(event, subscription, Math.floor(now / 1000));
  const result = await client.send({ ...request, signal });
  metrics.recordPushRequest({
    subscription: subscription.name,
    result: resultClass(result),
    failure: result.kind === 'failure' ? result.reason : undefined,
    durationSeconds: result.durationMs / 1000,
  });
  const outcome = classify(result, subscription);
  noteAttempt(result, outcome);
  const line = attemptLine(held, subscription, { result, outcome });
  options.logger[attemptLevel(outcome)](line, 'attempt');
  learn(queue, { result, outcome }, options);
  if (outcome.endpoint === 'gone') await disable(subscription, options);
  return {
    lease: leaseOf(held, subscription.topicId),
    outcome: outcome.outcome,
    delayMs: outcome.delayMs,
    error: outcome.error,
    traceId,
    answer: {
      status: result.kind === 'answer' ? result.status : null,
      durationMs: result.durationMs,
      response: result.kind === 'answer' && result.response.length > 0 ? result.response : null,
    },
  };
}

/** What a settle matches. */
export function leaseOf({ event }: Held, topicId: number): Settlement['lease'] {
  return { ...event, topic_id: topicId };
}

/** The database's clock, carried on by ours: the lease began when it was claimed. In milliseconds since 1970. */
function databaseTime({ event, claim }: Held): number {
  const claimedAt = Date.parse(event.lease_expires_at) - claim.leaseMs;
  return claimedAt + (performance.now() - claim.sentAt);
}

/** How many deliveries this endpoint gets, and whether any. */
function learn(
  { breaker, window, inFlight, waiting, name }: DeliveryQueue,
  { result, outcome }: { readonly result: EndpointResult; readonly outcome: Outcome },
  { logger }: AttemptOptions,
): void {
  const now = performance.now();
  if (result.kind === 'failure') window.unanswered();
  switch (outcome.endpoint) {
    case 'works':
      if (breaker.isOpen) logger.info({ subscription: name }, 'the endpoint works again');
      breaker.succeeded();
      window.worked(inFlight, waiting);
      break;
    case 'busy':
      breaker.hold(now, outcome.delayMs ?? 0);
      break;
    case 'gone':
      // until the worker has heard that the subscription is disabled
      breaker.hold(now, disabledWithinMs);
      break;
    case 'fails':
      if (!breaker.failed(now)) break;
      logger.warn(
        { subscription: name, error: outcome.error },
        'the endpoint fails, and is only probed until it works',
      );
  }
}

async function disable(
  { id, name, endpoint }: PushSubscription,
  { db, logger }: AttemptOptions,
): Promise<void> {
  const reason = 'the endpoint answered 410 Gone';
  try {
    if (await disableSubscription(db, { id, endpoint, reason })) {
      logger.warn({ subscription: name }, 'disabled: the endpoint answered 410 Gone');
    }
  } catch (error) {
    // the event is tried again, and the endpoint will say it again
    logger.error({ subscription: name, err: error }, 'cannot disable the subscription');
  }
}

function resultClass(result: EndpointResult): PushResult {
  if (result.kind === 'failure') return 'failed';
  const hundreds = Math.floor(result.status / 100);
  return hundreds >= 2 && hundreds <= 5 ? (`${hundreds}xx` as PushResult) : 'failed';
}
