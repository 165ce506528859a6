import Type, { type Static } from 'typebox';
import { Page, pageQueryMembers } from './page.ts';
import { CreatedPush, NewPush, Push, PushChange } from './push.ts';
import { Name } from './topic.ts';

export const SubscriptionParams = Type.Object({ subscription: Name });

export const SubscriptionQuery = Type.Object(
  { ...pageQueryMembers, topic: Type.Optional(Name) },
  { additionalProperties: false },
);
export type SubscriptionQuery = Static<typeof SubscriptionQuery>;

const Exact = Type.Unsafe<Record<string, string>>({
  type: 'object',
  minProperties: 1,
  maxProperties: 16,
  propertyNames: { pattern: '^(?!data$|specversion$)[a-z0-9]{1,20}$' },
  additionalProperties: { type: 'string', minLength: 1, maxLength: 2048 },
  description: 'CloudEvents attributes and the text that each must have.',
});

/** `exact` alone works yet; the other dialects are recognised, to be refused by name. */
const Filter = Type.Unsafe<({ exact?: Record<string, string> } & Record<string, unknown>) | null>({
  type: ['object', 'null'],
  properties: { exact: Exact },
  description: 'Which events it gets; null: all of them. Changes apply to later publishes.',
});

const attemptMembers = {
  max_attempts: Type.Integer({
    minimum: 1,
    maximum: 1000,
    description:
      'Deliveries begun before an event becomes a dead letter; MAX_RETRIES unless given.',
  }),
  minimum_backoff_ms: Type.Integer({
    minimum: 0,
    maximum: 86_400_000,
    description: 'BASE_BACKOFF_MS unless given.',
  }),
  maximum_backoff_ms: Type.Integer({
    minimum: 0,
    maximum: 86_400_000,
    description: 'MAX_BACKOFF_MS unless given.',
  }),
  multiplier: Type.Number({
    minimum: 1,
    maximum: 100,
    description: 'BACKOFF_MULTIPLIER unless given.',
  }),
  retry_client_errors: Type.Boolean({
    default: false,
    description:
      'Push: whether answers such as 400 are tried again instead of becoming a dead letter at once.',
  }),
};

const RetryPolicy = Type.Object(attemptMembers, {
  description:
    'After attempt n an event waits a random time up to minimum_backoff_ms x multiplier^(n - 1), at most maximum_backoff_ms.',
});

/** What a PUT sets and a PATCH changes, but for `push`. */
const settable = {
  filter: Type.Optional(Filter),
  visibility_timeout_seconds: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: 43_200,
      description:
        'How long a lease lasts; VISIBILITY_TIMEOUT_MS unless given. For pull: a push subscription keeps and shows it, and goes by push.timeout_ms.',
    }),
  ),
  retry_policy: Type.Optional(Type.Partial(RetryPolicy, { additionalProperties: false })),
  backpressure: Type.Optional(
    Type.Boolean({
      description:
        "Whether its backlog may stop the topic's producers; true for pull and false for push unless given.",
    }),
  ),
  on_expiry: Type.Optional(
    Type.Enum(['drop', 'dead_letter'], {
      default: 'drop',
      description: 'What becomes of events whose retention ends before they are acked.',
    }),
  ),
  ordered: Type.Optional(Type.Boolean({ default: false, description: 'Only false yet.' })),
  max_in_flight: Type.Optional(
    Type.Unsafe<number | null>({
      type: ['integer', 'null'],
      minimum: 1,
      description: 'Only null yet.',
    }),
  ),
};

const SubscriptionType = Type.Enum(['pull', 'push']);

export const PutSubscription = Type.Object(
  { topic: Name, type: SubscriptionType, ...settable, push: Type.Optional(NewPush) },
  { additionalProperties: false },
);
export type PutSubscription = Static<typeof PutSubscription>;

export const PatchSubscription = Type.Object(
  {
    topic: Type.Optional(Name),
    type: Type.Optional(SubscriptionType),
    ...settable,
    push: Type.Optional(PushChange),
  },
  { additionalProperties: false },
);
export type PatchSubscription = Static<typeof PatchSubscription>;

/** Pause and resume take nothing to choose by. */
export const Nothing = Type.Object({}, { additionalProperties: false });

const shown = {
  name: Type.String(),
  topic: Type.String(),
  type: Type.String(),
  state: Type.String({ description: 'active, paused or disabled' }),
  disabled_reason: Type.Unsafe<string | null>({
    type: ['string', 'null'],
    description: 'Why the broker stopped pushing; resume undoes it.',
  }),
  filter: Type.Unsafe<{ exact: Record<string, string> } | null>({
    type: ['object', 'null'],
    additionalProperties: true,
  }),
  visibility_timeout_seconds: Type.Integer(),
  retry_policy: RetryPolicy,
  push: Push,
  backpressure: Type.Boolean(),
  on_expiry: Type.String(),
  ordered: Type.Boolean(),
  max_in_flight: Type.Unsafe<number | null>({ type: ['integer', 'null'] }),
  created_at: Type.String(),
  updated_at: Type.String(),
};

export const Subscription = Type.Object(shown);
export type Subscription = Static<typeof Subscription>;

export const CreatedSubscription = Type.Object({ ...shown, push: CreatedPush });

export const SubscriptionPage = Page(Subscription);
