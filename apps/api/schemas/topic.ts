import Type, { type Static } from 'typebox';
import { Page } from './page.ts';

/** Names of topics and subscriptions. */
export const namePattern = '^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$';

export const Name = Type.String({ pattern: namePattern });

export const TopicParams = Type.Object({ topic: Name });

export const PutTopic = Type.Object(
  {
    retention_seconds: Type.Optional(
      Type.Integer({
        minimum: 60,
        maximum: 31_536_000,
        default: 604_800,
        description: 'How long events are kept, acked or not.',
      }),
    ),
    deduplication_seconds: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 2_592_000,
        default: 86_400,
        description: 'How long idempotency keys are remembered.',
      }),
    ),
    deduplicate_event_ids: Type.Optional(
      Type.Boolean({
        default: true,
        description: 'Whether source and id of an event are such a key by themselves.',
      }),
    ),
    max_backlog: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 1_000_000_000,
        description:
          'Events that may wait in the fullest subscription before publishes are answered with 503; QUEUE_MAX_SIZE unless given.',
      }),
    ),
  },
  { additionalProperties: false },
);
export type PutTopic = Static<typeof PutTopic>;

export const Topic = Type.Object({
  name: Type.String(),
  retention_seconds: Type.Integer(),
  deduplication_seconds: Type.Integer(),
  deduplicate_event_ids: Type.Boolean(),
  max_backlog: Type.Integer(),
  created_at: Type.String(),
  updated_at: Type.String(),
});
export type Topic = Static<typeof Topic>;

export const TopicPage = Page(Topic);
