import Type, { type Static } from 'typebox';
import { CloudEvent } from './event.ts';
import { Page } from './page.ts';
import { Name } from './topic.ts';

export const DeadLetterParams = Type.Object({
  subscription: Name,
  id: Type.String({ pattern: '^[0-9]{1,19}$' }),
});

export type DeadLetterParams = Static<typeof DeadLetterParams>;

/** All dead letters there are go back. */
export const Redrive = Type.Object(
  {
    rate_per_second: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 100_000,
        description: 'Events that go back in a second at most; as fast as it goes unless given.',
      }),
    ),
  },
  { additionalProperties: false },
);
export type Redrive = Static<typeof Redrive>;

export const DeadLetter = Type.Object({
  id: Type.String(),
  event_id: Type.String({
    description: "The broker's id of the event; after a redrive the first one.",
  }),
  reason: Type.String({ description: 'max_attempts, rejected or expired' }),
  last_error: Type.Unsafe<string | null>({ type: ['string', 'null'] }),
  last_status: Type.Unsafe<number | null>({
    type: ['integer', 'null'],
    description: 'Push: of the last answer; null where none came.',
  }),
  attempts: Type.Integer(),
  published_at: Type.String(),
  died_at: Type.String(),
  event: CloudEvent,
});

export const DeadLetterPage = Page(DeadLetter);

export const Purged = Type.Object({ purged: Type.Integer() });
