import Type from 'typebox';
import { Name } from './topic.ts';

export const EventParams = Type.Object({
  topic: Name,
  event_id: Type.String({ pattern: '^[0-9]{1,19}$' }),
});

const text = (description: string) => Type.Optional(Type.String({ description }));

/** What a producer sends; documentation, because the body is read by the scanner of publish-body.ts. */
export const NewEvent = Type.Object(
  {
    type: Type.String({ minLength: 1, description: 'What has happened, e.g. order.created.' }),
    id: text(
      "The producer's own id; with source it makes the publish idempotent, unless the topic says otherwise.",
    ),
    source: text('URI reference of what it happened to.'),
    subject: text('What of the source.'),
    time: text('When it happened, RFC 3339.'),
    datacontenttype: text('Media type of data.'),
    dataschema: text('URI of the schema of data.'),
    ordering_key: text('Events with the same key belong together; partitionkey in CloudEvents.'),
    traceparent: text('W3C Trace Context.'),
    tracestate: text('W3C Trace Context.'),
    extensions: Type.Optional(
      Type.Record(Type.String(), Type.Union([Type.String(), Type.Integer(), Type.Boolean()]), {
        description: 'CloudEvents extension attributes.',
      }),
    ),
    delay_seconds: Type.Optional(
      Type.Number({ minimum: 0, maximum: 2_592_000, description: 'Not before so long from now.' }),
    ),
    available_at: text('Not before then, RFC 3339; instead of delay_seconds.'),
    data: Type.Optional(
      Type.Unsafe<unknown>({ description: 'Any JSON; its text is handed on as it came.' }),
    ),
  },
  { additionalProperties: false, $id: 'NewEvent' },
);

export const PublishedEvent = Type.Object({
  id: Type.String({ description: "The broker's id of the event." }),
  duplicate: Type.Boolean({ description: 'It had been published before, under this id.' }),
});

/** The answer to an array: in its order. */
export const PublishedEvents = Type.Object({
  results: Type.Array(
    Type.Object({
      id: Type.Optional(Type.String()),
      duplicate: Type.Optional(Type.Boolean()),
      code: Type.Optional(Type.String({ description: 'Why this one was not published.' })),
      detail: Type.Optional(Type.String()),
    }),
  ),
});

/** An event as consumers get it: CloudEvents 1.0 in JSON format. */
export const CloudEvent = Type.Object(
  {
    specversion: Type.String(),
    id: Type.String({ description: "The producer's id, or the broker's where none was given." }),
    source: Type.String(),
    type: Type.String(),
    subject: Type.Optional(Type.String()),
    time: Type.Optional(Type.String()),
    datacontenttype: Type.Optional(Type.String()),
    dataschema: Type.Optional(Type.String()),
    partitionkey: Type.Optional(Type.String()),
    traceparent: Type.Optional(Type.String()),
    tracestate: Type.Optional(Type.String()),
    brokereventid: Type.Optional(Type.String({ description: "The broker's id." })),
    data: Type.Optional(Type.Unsafe<unknown>({})),
  },
  { additionalProperties: true, $id: 'CloudEvent' },
);
