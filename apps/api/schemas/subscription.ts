import Type, { type Static } from 'typebox';
import { Page, pageQueryMembers } from './page.ts';
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
};

const RetryPolicy = Type.Object(attemptMembers, {
  description:
    'After attempt n an event waits a random time up to minimum_backoff_ms x multiplier^(n - 1), at most maximum_backoff_ms.',
});

export const PutSubscription = Type.Object(
  {
    topic: Name,
    type: Type.Enum(['pull', 'push']),
    filter: Type.Optional(Filter),
    visibility_timeout_seconds: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 43_200,
        description: 'How long a lease lasts; VISIBILITY_TIMEOUT_MS unless given.',
      }),
    ),
    retry_policy: Type.Optional(Type.Partial(RetryPolicy, { additionalProperties: false })),
    backpressure: Type.Optional(
      Type.Boolean({
        default: true,
        description: "Whether its backlog may stop the topic's producers.",
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
    push: Type.Optional(Type.Unsafe<unknown>({ description: 'Not supported yet.' })),
  },
  { additionalProperties: false },
);
export type PutSubscription = Static<typeof PutSubscription>;

export const Subscription = Type.Object({
  name: Type.String(),
  topic: Type.String(),
  type: Type.String(),
  state: Type.String(),
  filter: Type.Unsafe<{ exact: Record<string, string> } | null>({
    type: ['object', 'null'],
    additionalProperties: true,
  }),
  visibility_timeout_seconds: Type.Integer(),
  retry_policy: RetryPolicy,
  backpressure: Type.Boolean(),
  on_expiry: Type.String(),
  ordered: Type.Boolean(),
  max_in_flight: Type.Unsafe<number | null>({ type: ['integer', 'null'] }),
  created_at: Type.String(),
  updated_at: Type.String(),
});
export type Subscription = Static<typeof Subscription>;

export const SubscriptionPage = Page(Subscription);
