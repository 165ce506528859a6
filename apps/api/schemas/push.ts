import Type from 'typebox';
import type { PushSettings } from '#db/subscriptions.ts';

/** A header's name is a token: RFC 9110 section 5.1. */
const headerName = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

const members = {
  endpoint: {
    type: 'string',
    minLength: 1,
    maxLength: 2048,
    description:
      'Where each event is sent by POST: http or https, no credentials. Private and loopback addresses only where ALLOW_PRIVATE_TARGETS opens them.',
  },
  mode: {
    type: 'string',
    enum: ['cloudevents_binary', 'cloudevents_structured', 'raw'],
    default: 'cloudevents_binary',
    description:
      "How: data as the body with attributes in ce-* headers, the event in CloudEvents' JSON format, or data alone.",
  },
  headers: {
    type: 'object',
    maxProperties: 32,
    propertyNames: { pattern: headerName },
    additionalProperties: { type: 'string', maxLength: 8192, pattern: '^[\\t\\x20-\\x7e]*$' },
    default: {},
    description:
      'Sent with every request, 8 KiB at most in all. Those that the broker or the connection sets cannot be set here.',
  },
  timeout_ms: {
    type: 'integer',
    minimum: 100,
    maximum: 60_000,
    default: 15_000,
    description: 'For the whole request.',
  },
} as const;

type PartialPush = { -readonly [Key in keyof PushSettings]?: PushSettings[Key] };

/** `null` is what a pull subscription shows, so that what was read can be put again. */
export const NewPush = Type.Unsafe<(PartialPush & { endpoint: string }) | null>({
  type: ['object', 'null'],
  properties: members,
  required: ['endpoint'],
  additionalProperties: false,
  description: 'Of a push subscription; its secret is made, and shown, when it is created.',
});

export const PushChange = Type.Unsafe<PartialPush>({
  type: 'object',
  properties: members,
  additionalProperties: false,
  description: 'What is not given stays; headers are replaced whole.',
});

const shown = {
  endpoint: { type: 'string' },
  mode: { type: 'string' },
  headers: { type: 'object', additionalProperties: { type: 'string' } },
  timeout_ms: { type: 'integer' },
} as const;

export const Push = Type.Unsafe<PushSettings | null>({
  type: ['object', 'null'],
  properties: shown,
  description: 'Null unless it is pushed.',
});

/** With the secret, which is shown this once. */
export const CreatedPush = Type.Unsafe<(PushSettings & { secret: string }) | null>({
  type: ['object', 'null'],
  properties: {
    ...shown,
    secret: {
      type: 'string',
      description:
        'whsec_ and 32 random bytes in base64 (Standard Webhooks): what receivers check signatures with. Shown once.',
    },
  },
  description: 'Null unless it is pushed.',
});
