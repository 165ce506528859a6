import type { PushSettings, SubscriptionRow, SubscriptionSettings } from '#db/subscriptions.ts';
import { invalidRequest, Problem } from './problems.ts';
import { mergePush } from './push-body.ts';
import type { PatchSubscription } from './schemas/subscription.ts';
import { readFilter, refuseUnsupported } from './subscription-body.ts';

/**
 * What a PATCH makes of a subscription: members that are given replace those that there are; `retry_policy` and `push` by
 * member. Throws what is wrong with it, at once or when it sees the subscription.
 */
export function readChange(
  name: string,
  patch: PatchSubscription,
): (current: SubscriptionRow) => SubscriptionSettings {
  refuseUnsupported(patch);
  const filter = patch.filter === undefined ? undefined : readFilter(patch.filter);
  return (current) => {
    const { topic = current.topic, type = current.type } = patch;
    if (topic !== current.topic || type !== current.type) throw immutable(name);
    return {
      filter: filter === undefined ? current.filter : filter,
      visibility_timeout_seconds:
        patch.visibility_timeout_seconds ?? current.visibility_timeout_seconds,
      ...mergeRetryPolicy(patch.retry_policy ?? {}, current),
      backpressure: patch.backpressure ?? current.backpressure,
      on_expiry: patch.on_expiry ?? current.on_expiry,
      push: pushOf(patch, current),
    };
  };
}

/** Topic and type of a subscription never change. */
export function immutable(name: string): Problem {
  const detail = `${name} exists with another topic or type, which cannot be changed; delete it first.`;
  return new Problem('subscription_immutable', detail);
}

function mergeRetryPolicy(
  given: NonNullable<PatchSubscription['retry_policy']>,
  current: SubscriptionRow,
) {
  const { minimum_backoff_ms: minimum = current.minimum_backoff_ms } = given;
  const { maximum_backoff_ms: maximum = current.maximum_backoff_ms } = given;
  if (minimum > maximum) {
    const member =
      given.minimum_backoff_ms === undefined ? 'maximum_backoff_ms' : 'minimum_backoff_ms';
    const detail = `minimum_backoff_ms must not be more than maximum_backoff_ms: they would be ${minimum} and ${maximum}.`;
    throw invalidRequest(detail, `/retry_policy/${member}`);
  }
  return {
    max_attempts: given.max_attempts ?? current.max_attempts,
    minimum_backoff_ms: minimum,
    maximum_backoff_ms: maximum,
    backoff_multiplier: given.multiplier ?? current.backoff_multiplier,
    retry_client_errors: given.retry_client_errors ?? current.retry_client_errors,
  };
}

function pushOf({ push }: PatchSubscription, current: SubscriptionRow): PushSettings | null {
  if (push === undefined) return current.push;
  if (current.push === null) throw invalidRequest('A pull subscription has no push.', '/push');
  return mergePush(current.push, push);
}
