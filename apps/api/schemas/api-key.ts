import Type, { type Static } from 'typebox';
import { Page } from './page.ts';

export const apiKeyScopes = ['publish', 'consume', 'admin'] as const;

export type Scope = (typeof apiKeyScopes)[number];

const Scopes = Type.Array(Type.Enum([...apiKeyScopes]), {
  minItems: 1,
  maxItems: 3,
  uniqueItems: true,
  description:
    'publish: publish. consume: receive, settle, read events and dead letters. admin: everything.',
});

const TopicPattern = Type.String({ pattern: '^[A-Za-z0-9._~*-]{1,128}$' });

const Topics = Type.Unsafe<string[] | null>({
  type: ['array', 'null'],
  items: TopicPattern,
  minItems: 1,
  maxItems: 100,
  description: "Patterns over names of topics ('*' stands for any characters); null opens all.",
});

const ExpiresAt = Type.Unsafe<string | null>({
  type: ['string', 'null'],
  maxLength: 64,
  description: 'RFC 3339, by the clock of the database; null: never.',
});

const Name = Type.String({
  minLength: 1,
  maxLength: 100,
  pattern: '^[^\\x00-\\x1f\\x7f]+$',
  description: 'What the key is for; need not be unique.',
});

export const CreateApiKey = Type.Object(
  {
    name: Name,
    scopes: Scopes,
    topics: Type.Optional(Topics),
    expires_at: Type.Optional(ExpiresAt),
  },
  { additionalProperties: false },
);
export type CreateApiKey = Static<typeof CreateApiKey>;

const apiKeyMembers = {
  id: Type.String({ description: 'Decimal digits.' }),
  name: Type.String(),
  prefix: Type.String({ description: 'How the key begins.' }),
  scopes: Type.Array(Type.String()),
  topics: Type.Unsafe<string[] | null>({ type: ['array', 'null'], items: { type: 'string' } }),
  created_at: Type.String(),
  expires_at: Type.Unsafe<string | null>({ type: ['string', 'null'] }),
};

export const ApiKey = Type.Object(apiKeyMembers);
export type ApiKey = Static<typeof ApiKey>;

export const CreatedApiKey = Type.Object({
  ...apiKeyMembers,
  key: Type.String({ description: 'The key itself. It is shown this once.' }),
});

export const ApiKeyPage = Page(ApiKey);

export const ApiKeyParams = Type.Object({
  id: Type.String({ pattern: '^[1-9][0-9]{0,9}$' }),
});
