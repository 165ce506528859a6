import Type, { type Static } from 'typebox';
import { CloudEvent } from './event.ts';

const LeaseId = Type.String({ minLength: 1, maxLength: 128 });

const visibility = {
  minimum: 1,
  maximum: 43_200,
  description: 'How long the lease lasts from now.',
};

export const receiveMax = 1000;

export const Receive = Type.Object(
  {
    max_messages: Type.Optional(Type.Integer({ minimum: 1, maximum: receiveMax, default: 10 })),
    wait_seconds: Type.Optional(
      Type.Number({
        minimum: 0,
        maximum: 20,
        default: 0,
        description: 'How long to wait when there is nothing.',
      }),
    ),
    visibility_timeout_seconds: Type.Optional(Type.Integer(visibility)),
  },
  { additionalProperties: false },
);
export type Receive = Static<typeof Receive>;

export const Received = Type.Object({
  messages: Type.Array(
    Type.Object({
      lease_id: Type.String({ description: 'Opaque; settles this delivery.' }),
      lease_expires_at: Type.String(),
      delivery_attempt: Type.Integer({ description: '1 the first time.' }),
      event_id: Type.String({ description: "The broker's id; after a redrive the first one." }),
      published_at: Type.String(),
      event: CloudEvent,
    }),
  ),
});

const leaseIds = Type.Array(LeaseId, { minItems: 1, maxItems: receiveMax });

export const Ack = Type.Object({ lease_ids: leaseIds }, { additionalProperties: false });
export type Ack = Static<typeof Ack>;

export const Nack = Type.Object(
  {
    leases: Type.Array(
      Type.Object(
        {
          lease_id: LeaseId,
          delay_seconds: Type.Optional(
            Type.Number({
              minimum: 0,
              maximum: 43_200,
              description: "Until it is due again; the subscription's backoff unless given.",
            }),
          ),
          reason: Type.Optional(
            Type.String({ maxLength: 1000, description: 'Kept as last_error.' }),
          ),
          dead_letter: Type.Optional(
            Type.Boolean({ default: false, description: 'No further attempt: a dead letter now.' }),
          ),
        },
        { additionalProperties: false },
      ),
      { minItems: 1, maxItems: receiveMax },
    ),
  },
  { additionalProperties: false },
);
export type Nack = Static<typeof Nack>;

export const Extend = Type.Object(
  { lease_ids: leaseIds, visibility_timeout_seconds: Type.Integer(visibility) },
  { additionalProperties: false },
);
export type Extend = Static<typeof Extend>;

/** What became of each lease. */
export const Settled = Type.Object({
  succeeded: Type.Array(Type.String()),
  failed: Type.Array(Type.Object({ lease_id: Type.String(), code: Type.String() })),
});

const nullableText = Type.Unsafe<string | null>({ type: ['string', 'null'] });
const nullableInteger = (description: string) =>
  Type.Unsafe<number | null>({ type: ['integer', 'null'], description });

const AttemptItem = Type.Object({
  attempt: Type.Integer(),
  outcome: Type.String({
    description: 'acked, nacked, released, deferred, dead, expired or lease_expired',
  }),
  settled_at: Type.String(),
  worker: Type.Unsafe<string | null>({
    type: ['string', 'null'],
    description: 'The process that had the lease; null for a pull consumer.',
  }),
  status: nullableInteger('Push: of the answer; null where none came.'),
  duration_ms: nullableInteger('Push: how long the request took.'),
  error: nullableText,
  response: Type.Unsafe<string | null>({
    type: ['string', 'null'],
    description: "Push: the first bytes of the answer's body, as UTF-8.",
  }),
});

export const Deliveries = Type.Object({
  items: Type.Array(
    Type.Object({
      subscription: Type.String(),
      state: Type.String({ description: 'waiting, leased, acked, dead or expired' }),
      attempts: Type.Integer(),
      available_at: nullableText,
      lease_expires_at: nullableText,
      last_attempt_at: nullableText,
      last_error: nullableText,
      dead_letter_id: nullableText,
      history: Type.Array(AttemptItem, {
        description: 'Attempts that have ended, oldest first; the last 100.',
      }),
    }),
  ),
});
