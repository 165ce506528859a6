import { afterAll, beforeAll, expect, test } from 'vitest';
import { problemCodes, problemKind } from '../../apps/api/problem-codes.ts';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';

interface Schema {
  readonly items?: { readonly properties: object };
}

interface Operation {
  readonly summary?: string;
  readonly tags?: string[];
  readonly security?: unknown[];
  readonly responses: Record<
    string,
    {
      description: string;
      content?: Record<string, { schema: { properties?: Record<string, Schema> } }>;
    }
  >;
}

let api: OwnTestApp;
let document: {
  openapi: string;
  info: { description: string };
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, { properties: Record<string, { enum?: string[] }> }> };
};
beforeAll(async () => {
  api = await startOwnApp();
  const answer = await api.call('GET /api/openapi.json', undefined, { key: null });
  document = answer.json;
});
afterAll(() => api[Symbol.asyncDispose]());

function operations(): [string, Operation][] {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, each]): [string, Operation] => [
      `${method.toUpperCase()} ${path}`,
      each,
    ]),
  );
}

test('every endpoint is there, with a summary, a tag and its key', () => {
  const names = operations().map(([name]) => name);
  for (const name of [
    'PUT /api/v1/topics/{topic}',
    'POST /api/v1/topics/{topic}/events',
    'GET /api/v1/topics/{topic}/events/{event_id}/deliveries',
    'POST /api/v1/subscriptions/{subscription}/receive',
    'POST /api/v1/subscriptions/{subscription}/ack',
    'POST /api/v1/subscriptions/{subscription}/nack',
    'POST /api/v1/subscriptions/{subscription}/extend',
    'PATCH /api/v1/subscriptions/{subscription}',
    'POST /api/v1/subscriptions/{subscription}/pause',
    'POST /api/v1/subscriptions/{subscription}/resume',
    'POST /api/v1/subscriptions/{subscription}/dlq/redrive',
    'DELETE /api/v1/subscriptions/{subscription}/dlq',
    'GET /api/v1/jobs/{id}',
    'POST /api/v1/api-keys',
    'GET /api/status',
    'GET /api/health',
  ]) {
    expect(names).toContain(name);
  }
  for (const [name, operation] of operations()) {
    expect([name, operation.summary]).not.toContain(undefined);
    expect([name, operation.tags]).not.toContain(undefined);
    expect([name, operation.security !== undefined]).toEqual([
      name,
      !name.match(/health|metrics|openapi/),
    ]);
  }
});

test('every problem code is documented: in the table, in the schema, and at least at one endpoint', () => {
  const shown = new Set(
    operations().flatMap(([, { responses }]) =>
      Object.values(responses).flatMap(({ description }) =>
        [...description.matchAll(/`([a-z_]+)`: /g)].map((match) => match[1]),
      ),
    ),
  );
  // these two belong to no endpoint; the last two are codes of single leases in an answer
  for (const code of ['not_found', 'method_not_allowed', 'lease_lost', 'invalid_lease_id']) {
    shown.add(code);
  }
  for (const code of problemCodes) {
    expect(document.info.description).toContain(`| \`${code}\` | ${problemKind(code).status} |`);
    expect([...shown]).toContain(code);
  }
  expect(document.components.schemas['Problem']?.properties['code']?.enum).toEqual(problemCodes);
});

test('problems are shown with the status that they have', () => {
  for (const [, { responses }] of operations()) {
    for (const [status, { description, content }] of Object.entries(responses)) {
      for (const [, code] of description.matchAll(/`([a-z_]+)`: /g)) {
        expect(String(problemKind(code as (typeof problemCodes)[number]).status)).toBe(status);
        expect(Object.keys(content ?? {})).toContain('application/problem+json');
      }
    }
  }
});

test('every reference leads somewhere', () => {
  const names = Object.keys(document.components.schemas);
  for (const [, name] of JSON.stringify(document).matchAll(
    /"\$ref":"#\/components\/schemas\/([^"]+)"/g,
  )) {
    expect(names).toContain(name);
  }
});

test('regression: what an endpoint answers when all is well is not in the document', async () => {
  for (const [name, { responses }] of operations()) {
    expect([name, Object.keys(responses)]).toEqual([
      name,
      expect.arrayContaining([expect.stringMatching(/^2/)]),
    ]);
  }
  const health = document.paths['/api/health']?.['get']?.responses;
  expect(Object.keys(health?.['503']?.content ?? {})).toEqual([
    'application/json',
    'application/problem+json',
  ]);
  const answer = await api.call('GET /api/health', undefined, { key: null });
  const members = health?.['200']?.content?.['application/json']?.schema.properties ?? {};
  expect(Object.keys(answer.json)).toEqual(Object.keys(members));
});

test('regression: published_at of a received message is not in the document', async () => {
  await api.call('PUT /api/v1/topics/t', {});
  await api.call('PUT /api/v1/subscriptions/s', { topic: 't', type: 'pull' });
  await api.call('POST /api/v1/topics/t/events', { type: 'a' });
  const answer = await api.call('POST /api/v1/subscriptions/s/receive', {});
  const { responses } =
    document.paths['/api/v1/subscriptions/{subscription}/receive']?.['post'] ?? {};
  const { messages } = responses?.['200']?.content?.['application/json']?.schema.properties ?? {};
  expect(Object.keys(messages?.items?.properties ?? {})).toEqual(
    expect.arrayContaining(Object.keys(answer.json.messages[0])),
  );
});

test('the secret of a push subscription is shown in the answer that creates it, and documented nowhere else', () => {
  const withSecret = operations().flatMap(([name, { responses }]) =>
    Object.entries(responses)
      .filter(([, response]) => JSON.stringify(response).includes('"secret"'))
      .map(([status]) => `${name} ${status}`),
  );
  expect(withSecret).toEqual(['PUT /api/v1/subscriptions/{subscription} 201']);
});

test('where leases and problems share a status, both are documented', () => {
  const { responses } = document.paths['/api/v1/subscriptions/{subscription}/ack']?.['post'] ?? {};
  expect(Object.keys(responses?.['409']?.content ?? {})).toEqual([
    'application/json',
    'application/problem+json',
  ]);
});
