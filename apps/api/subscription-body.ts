import type { NewSubscription, PushSettings, SubscriptionRow } from '#db/subscriptions.ts';
import type { ApiConfig } from '#runtime/config.ts';
import { invalidRequest, pointerTo, Problem } from './problems.ts';
import { readPush } from './push-body.ts';
import type { PatchSubscription, PutSubscription, Subscription } from './schemas/subscription.ts';

type Defaults = Pick<
  ApiConfig,
  'visibilityTimeoutMs' | 'maxRetries' | 'baseBackoffMs' | 'maxBackoffMs' | 'backoffMultiplier'
>;

const laterDialects = ['prefix', 'suffix', 'all', 'any', 'not', 'sql'];

/** What a PUT asks for, with the defaults filled in; throws what is wrong, or not supported yet, by name. */
export function readSubscription(
  name: string,
  body: PutSubscription,
  defaults: Defaults,
): NewSubscription {
  refuseUnsupported(body);
  return {
    name,
    topic: body.topic,
    type: body.type,
    settings: {
      filter: readFilter(body.filter ?? null),
      visibility_timeout_seconds:
        body.visibility_timeout_seconds ?? Math.ceil(defaults.visibilityTimeoutMs / 1000),
      ...readRetryPolicy(body.retry_policy ?? {}, defaults),
      backpressure: body.backpressure ?? body.type === 'pull',
      on_expiry: body.on_expiry ?? 'drop',
      push: pushOf(body),
    },
  };
}

function pushOf({ type, push }: PutSubscription): PushSettings | null {
  const isGiven = push !== undefined && push !== null;
  if (type === 'push' && !isGiven) {
    throw invalidRequest('push must be given where type is push.', '/push');
  }
  if (type === 'pull' && isGiven) {
    throw invalidRequest('A pull subscription has no push; its type would be push.', '/push');
  }
  return isGiven ? readPush(push) : null;
}

/** Refuses by name what is known and comes later. */
export function refuseUnsupported(body: PutSubscription | PatchSubscription): void {
  if (body.ordered === true) throw notSupported('ordered: true', '/ordered');
  if (typeof body.max_in_flight === 'number') throw notSupported('max_in_flight', '/max_in_flight');
}

/** The filter that a body gives; null matches everything. */
export function readFilter(filter: NonNullable<PutSubscription['filter']> | null) {
  if (filter === null) return null;
  for (const dialect of Object.keys(filter)) {
    const pointer = pointerTo('/filter', dialect);
    if (laterDialects.includes(dialect)) throw notSupported(`The filter ${dialect}`, pointer);
    if (dialect !== 'exact') throw invalidRequest(`${dialect} is no filter.`, pointer);
  }
  if (filter.exact === undefined) {
    throw invalidRequest('A filter must have exact.', '/filter/exact');
  }
  return { exact: filter.exact };
}

/** A bound that is given moves the default of the other one, rather than being refused for it. */
function readRetryPolicy(given: NonNullable<PutSubscription['retry_policy']>, defaults: Defaults) {
  const minimum =
    given.minimum_backoff_ms ??
    Math.min(defaults.baseBackoffMs, given.maximum_backoff_ms ?? Infinity);
  const maximum = given.maximum_backoff_ms ?? Math.max(defaults.maxBackoffMs, minimum);
  if (minimum > maximum) {
    throw invalidRequest(
      'minimum_backoff_ms must not be more than maximum_backoff_ms.',
      '/retry_policy/minimum_backoff_ms',
    );
  }
  return {
    max_attempts: given.max_attempts ?? defaults.maxRetries,
    minimum_backoff_ms: minimum,
    maximum_backoff_ms: maximum,
    backoff_multiplier: given.multiplier ?? defaults.backoffMultiplier,
    retry_client_errors: given.retry_client_errors ?? false,
  };
}

function notSupported(what: string, pointer: string): Problem {
  const detail = `${what} is not supported yet.`;
  return new Problem('not_supported', detail, { errors: [{ detail, pointer }] });
}

/** A subscription as the API shows it. */
export function subscriptionToWire(row: SubscriptionRow): Subscription {
  return {
    name: row.name,
    topic: row.topic,
    type: row.type,
    state: row.state,
    disabled_reason: row.disabled_reason,
    filter: row.filter === null ? null : { exact: { ...row.filter.exact } },
    visibility_timeout_seconds: row.visibility_timeout_seconds,
    retry_policy: {
      max_attempts: row.max_attempts,
      minimum_backoff_ms: row.minimum_backoff_ms,
      maximum_backoff_ms: row.maximum_backoff_ms,
      multiplier: row.backoff_multiplier,
      retry_client_errors: row.retry_client_errors,
    },
    push: row.push,
    backpressure: row.backpressure,
    on_expiry: row.on_expiry,
    ordered: row.ordered,
    max_in_flight: row.max_in_flight,
    created_at: row.created_at,
    updated_at: row.updated_at,
  };
}
