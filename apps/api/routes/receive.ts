import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import Type from 'typebox';
import type { ClaimedEvent } from '#db/claim.ts';
import { faultOf } from '#db/errors.ts';
import { decodeLeaseId, type Lease } from '#db/lease.ts';
import type { Settlement } from '#db/settle.ts';
import { recordReceive } from '#runtime/messaging-spans.ts';
import type { AppDependencies } from '../dependencies.ts';
import type { DirectorySubscription } from '../directory.ts';
import { messageJson } from '../receive/event-output.ts';
import { withSettleSpan } from '../receive/settle-span.ts';
import { emptyBodyIsNone } from '../control-body.ts';
import { pullSubscriptionOf } from '../lookups.ts';
import { Problem } from '../problems.ts';
import { Ack, Extend, Nack, Receive, Received, Settled } from '../schemas/delivery.ts';
import { Name } from '../schemas/topic.ts';

const SubscriptionParams = Type.Object({ subscription: Name });

/** Other than those of ack and nack, each that succeeded comes with its new deadline. */
const Extended = Type.Object({
  succeeded: Type.Array(
    Type.Object({
      lease_id: Type.String(),
      lease_expires_at: Type.String({
        description: 'Later than asked for where the lease lasted longer already.',
      }),
    }),
  ),
  failed: Settled.properties.failed,
});

const jsonType = 'application/json; charset=utf-8';
const settledDescription =
  'Codes: lease_lost (it ran out, or was settled otherwise) and invalid_lease_id (no lease of this subscription). 409 with the same body when all failed. Safe to repeat.';

/** 1,000 nacks with a reason each. */
const bodyBytesMax = 2 * 1024 * 1024;

interface SubscriptionRoute {
  Params: { subscription: string };
}

/** What pull consumers call. */
export function receiveRoutes(app: FastifyInstance, deps: AppDependencies): void {
  receiveRoute(app, deps);
  settleRoutes(app, deps);
  extendRoute(app, deps);
}

function optionsOf(schema: {
  summary: string;
  description?: string;
  body: object;
  response: object;
}) {
  return {
    bodyLimit: bodyBytesMax,
    config: {
      scope: 'consume',
      subscriptionParam: 'subscription',
      problems: ['subscription_is_push'],
    },
    schema: { tags: ['deliveries'], params: SubscriptionParams, ...schema },
  } as const;
}

function receiveRoute(app: FastifyInstance, deps: AppDependencies): void {
  app.post<SubscriptionRoute & { Body: Receive }>(
    '/api/v1/subscriptions/:subscription/receive',
    {
      ...optionsOf({
        summary: 'Lease events',
        description:
          'Answers as soon as there is something, with what there is. Empty when the wait is over, and while the subscription is paused.',
        body: Receive,
        response: { 200: Received },
      }),
      preValidation: emptyBodyIsNone,
    },
    async (request, reply) => {
      const subscription = await pullSubscriptionOf(deps.directory, request.params.subscription);
      const leaseSeconds =
        request.body.visibility_timeout_seconds ?? subscription.visibility_timeout_seconds;
      const handover = watchHandover(deps, subscription, reply);
      const events = await receive(deps, subscription, {
        maxMessages: request.body.max_messages ?? 10,
        waitMs: Math.round((request.body.wait_seconds ?? 0) * 1000),
        leaseMs: leaseSeconds * 1000,
        signal: handover.signal,
      });
      handover.begin(events);
      return reply.type(jsonType).send(messagesJson(events, subscription));
    },
  );
}

async function receive(
  { receiver }: AppDependencies,
  subscription: DirectorySubscription,
  request: Parameters<AppDependencies['receiver']['receive']>[1],
): Promise<ClaimedEvent[]> {
  const startedAt = performance.now();
  try {
    const events = await receiver.receive(subscription, request);
    if (events.length > 0) {
      recordReceive({ subscription: subscription.name, events, startedAt, parent: 'kept' });
    }
    return events;
  } catch (error) {
    if (faultOf(error) !== 'outcome_unknown') throw error;
    const detail =
      'What may have been leased is handed out again when its lease runs out; it is safe to ask again.';
    throw new Problem('database_unavailable', detail, { cause: error });
  }
}

/** Knows whether the client is there, and gives back what could not be written to it. */
function watchHandover(
  { settler }: AppDependencies,
  subscription: DirectorySubscription,
  reply: FastifyReply,
) {
  const gone = new AbortController();
  let isWritten = false;
  let given: readonly ClaimedEvent[] = [];
  const release = (): void => {
    if (given.length > 0) void settler.release(subscription, given);
    given = [];
  };
  reply.raw.once('finish', () => {
    isWritten = true;
  });
  reply.raw.once('close', () => {
    if (isWritten) return;
    gone.abort();
    release();
  });
  return {
    signal: gone.signal,
    begin(events: readonly ClaimedEvent[]): void {
      given = events;
      if (gone.signal.aborted) release();
    },
  };
}

function messagesJson(
  events: readonly ClaimedEvent[],
  subscription: DirectorySubscription,
): string {
  const topic = { id: subscription.topic_id, name: subscription.topic };
  let messages = '';
  for (const event of events) messages += (messages === '' ? '' : ',') + messageJson(event, topic);
  return `{"messages":[${messages}]}`;
}

type Failure = { readonly lease_id: string; readonly code: 'lease_lost' | 'invalid_lease_id' };

/** Leases of this subscription, by their place in the request; what is no such lease is left out. */
function readLeases(
  ids: readonly string[],
  { id, topic_id: topicId }: DirectorySubscription,
): (Lease | undefined)[] {
  return ids.map((text) => {
    const lease = decodeLeaseId(text);
    return lease?.subscription_id === id && lease.topic_id === topicId ? lease : undefined;
  });
}

/** Puts together what succeeded and what failed; `outcomes` has one of each lease that could be read, null where it is lost. */
function settledAnswer<Success>(
  ids: readonly string[],
  leases: readonly (Lease | undefined)[],
  outcomes: readonly (Success | null)[],
): { succeeded: Success[]; failed: Failure[] } {
  const succeeded: Success[] = [];
  const failed: Failure[] = [];
  let next = 0;
  for (const [index, id] of ids.entries()) {
    const isRead = leases[index] !== undefined;
    const outcome = isRead ? (outcomes[next++] ?? null) : null;
    if (outcome !== null) succeeded.push(outcome);
    else failed.push({ lease_id: id, code: isRead ? 'lease_lost' : 'invalid_lease_id' });
  }
  return { succeeded, failed };
}

function settleRoutes(app: FastifyInstance, deps: AppDependencies): void {
  const response = { 200: Settled, 409: Settled };
  app.post<SubscriptionRoute & { Body: Ack }>(
    '/api/v1/subscriptions/:subscription/ack',
    optionsOf({
      summary: 'Settle events as done',
      description: settledDescription,
      body: Ack,
      response,
    }),
    async (request, reply) => {
      const { lease_ids: ids } = request.body;
      return settleLeases(deps, {
        request,
        reply,
        operation: 'ack',
        ids,
        settlementOf: (lease) => ({ lease, outcome: 'acked' }),
      });
    },
  );
  app.post<SubscriptionRoute & { Body: Nack }>(
    '/api/v1/subscriptions/:subscription/nack',
    optionsOf({
      summary: 'Give events back',
      description: settledDescription,
      body: Nack,
      response,
    }),
    async (request, reply) => {
      const { leases } = request.body;
      const settlements = leases.map(nackOf);
      const ids = leases.map((each) => each.lease_id);
      const settlementOf = (lease: Lease, index: number): Settlement => ({
        lease,
        ...(settlements[index] ?? { outcome: 'nacked' }),
      });
      return settleLeases(deps, { request, reply, operation: 'nack', ids, settlementOf });
    },
  );
}

function nackOf(nack: Nack['leases'][number], index: number): Omit<Settlement, 'lease'> {
  const { delay_seconds: delaySeconds, reason: error, dead_letter: isDead = false } = nack;
  if (isDead && delaySeconds !== undefined) {
    const detail = 'What becomes a dead letter has no delay_seconds.';
    throw new Problem('invalid_request', detail, {
      errors: [{ detail, pointer: `/leases/${index}/delay_seconds` }],
    });
  }
  const delayMs = delaySeconds === undefined ? undefined : Math.round(delaySeconds * 1000);
  return { outcome: isDead ? 'rejected' : 'nacked', delayMs, error };
}

interface SettleRequest {
  readonly request: FastifyRequest<SubscriptionRoute>;
  readonly reply: FastifyReply;
  readonly operation: 'ack' | 'nack';
  readonly ids: readonly string[];
  readonly settlementOf: (lease: Lease, index: number) => Settlement;
}

async function settleLeases(deps: AppDependencies, settle: SettleRequest): Promise<object> {
  const { request, reply, operation, ids, settlementOf } = settle;
  const subscription = await pullSubscriptionOf(deps.directory, request.params.subscription);
  const leases = readLeases(ids, subscription);
  const settlements: Settlement[] = [];
  const settled: string[] = [];
  for (const [index, lease] of leases.entries()) {
    if (lease === undefined) continue;
    settlements.push(settlementOf(lease, index));
    settled.push(ids[index] ?? '');
  }
  const results =
    settlements.length === 0
      ? []
      : await withSettleSpan(
          { operation, subscription: subscription.name, messages: settlements.length },
          () => repeatable(() => deps.settler.settle(subscription, settlements)),
        );
  const outcomes = results.map((result, index) =>
    result === 'lease_lost' ? null : (settled[index] ?? null),
  );
  const answer = settledAnswer(ids, leases, outcomes);
  if (answer.succeeded.length === 0) void reply.code(409);
  return answer;
}

function extendRoute(app: FastifyInstance, deps: AppDependencies): void {
  app.post<SubscriptionRoute & { Body: Extend }>(
    '/api/v1/subscriptions/:subscription/extend',
    optionsOf({
      summary: 'Prolong leases',
      description: `Never shortens one: to shorten is to nack. ${settledDescription}`,
      body: Extend,
      response: { 200: Extended, 409: Extended },
    }),
    async (request, reply) => {
      const subscription = await pullSubscriptionOf(deps.directory, request.params.subscription);
      const { lease_ids: ids, visibility_timeout_seconds: seconds } = request.body;
      const read = readLeases(ids, subscription);
      const leases = read.filter((lease) => lease !== undefined);
      const deadlines =
        leases.length === 0
          ? []
          : await withSettleSpan(
              { operation: 'extend', subscription: subscription.name, messages: leases.length },
              () => repeatable(() => deps.settler.extend(subscription, leases, seconds * 1000)),
            );
      const idsRead = ids.filter((_, index) => read[index] !== undefined);
      const outcomes = deadlines.map((deadline, index) =>
        deadline === null ? null : { lease_id: idsRead[index] ?? '', lease_expires_at: deadline },
      );
      const answer = settledAnswer(ids, read, outcomes);
      if (answer.succeeded.length === 0) void reply.code(409);
      return answer;
    },
  );
}

/** An outcome that is unknown need not worry who settles or extends. */
async function repeatable<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    if (faultOf(error) !== 'outcome_unknown') throw error;
    const detail =
      'It may have been done or not; to repeat it is safe: what was settled is not settled again.';
    throw new Problem('outcome_unknown', detail, { cause: error });
  }
}
