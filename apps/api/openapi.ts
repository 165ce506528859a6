import swagger from '@fastify/swagger';
import type { FastifyInstance, RouteOptions } from 'fastify';
import { version } from '#runtime/version.ts';
import { type ProblemCode, problemCodes, problemKind } from './problem-codes.ts';
import { problemMediaType } from './problems.ts';
import { ProblemSchema } from './schemas/problem.ts';

/**
 * Makes the OpenAPI document out of the schemas of the routes that are added from now on. To each route the problems are
 * added that it may be answered with.
 */
export async function addOpenApi(app: FastifyInstance): Promise<void> {
  app.addSchema(ProblemSchema);
  app.addHook('onRoute', documentProblems);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Event Broker',
        version,
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
        description: `Events in by POST, out by receive and ack.\n\n${problemTable()}`,
      },
      components: {
        securitySchemes: {
          api_key: { type: 'http', scheme: 'bearer', description: 'An API key: ebk_...' },
        },
      },
    },
    refResolver: {
      buildLocalReference: (schema, _base, _fragment, index) =>
        typeof schema['$id'] === 'string' ? schema['$id'] : `schema_${index}`,
    },
  });
}

/** Serves the document; add it last. */
export function openApiRoutes(app: FastifyInstance): void {
  let text: string | undefined;
  app.get(
    '/api/openapi.json',
    {
      config: { scope: 'none' },
      schema: {
        tags: ['operation'],
        summary: 'This document',
        response: {
          200: {
            description: 'OpenAPI 3.1',
            content: { 'application/json': { schema: { type: 'object' } } },
          },
        },
      },
    },
    async (_request, reply) => {
      text ??= JSON.stringify(app.swagger());
      return reply.type('application/json; charset=utf-8').send(text);
    },
  );
}

function problemTable(): string {
  const rows = problemCodes.map((code) => {
    const { status, title } = problemKind(code);
    return `| \`${code}\` | ${status} | ${title} |`;
  });
  return [
    'Everything that goes wrong is answered with a problem (RFC 9457), whose `code` never changes its meaning:',
    '',
    '| code | status | meaning |',
    '|---|---|---|',
    ...rows,
  ].join('\n');
}

const everywhere: readonly ProblemCode[] = [
  'bad_request',
  'headers_too_large',
  'request_timeout',
  'rate_limited',
  'internal_error',
  'handler_timeout',
  'starting',
  'shutting_down',
];
const withKey: readonly ProblemCode[] = [
  'unauthorized',
  'forbidden',
  'invalid_request',
  'database_unavailable',
  'database_busy',
];
const withBody: readonly ProblemCode[] = [
  'body_too_large',
  'unsupported_media_type',
  'invalid_json',
];

const withPublish: readonly ProblemCode[] = [
  'invalid_event',
  'event_too_large',
  'too_many_events',
  'idempotency_conflict',
  'idempotency_in_progress',
  'publish_buffer_full',
  'backlog_full',
];

/** What may be wrong with one segment of a path, wherever it stands. */
const ofSegment: Readonly<Record<string, ProblemCode>> = {
  ':topic': 'topic_not_found',
  ':subscription': 'subscription_not_found',
  ':event_id': 'event_not_found',
  receive: 'receive_waiting_full',
};

function documentProblems(route: RouteOptions): void {
  const config = route.config ?? {};
  if (route.schema === undefined || route.schema.hide === true) return;
  const isOpen = config.scope === 'none';
  const hasBody = ['POST', 'PUT', 'PATCH'].includes(String(route.method));
  const changes = hasBody || route.method === 'DELETE';
  const codes = new Set<ProblemCode>([
    ...everywhere,
    ...(isOpen ? [] : withKey),
    ...(hasBody ? withBody : []),
    ...(changes ? (['outcome_unknown'] as const) : []),
    ...(config.scope === 'publish' ? withPublish : []),
    ...segmentProblems(route),
    ...(config.problems ?? []),
  ]);
  const response: Record<string, unknown> = { ...(route.schema.response as object | undefined) };
  for (const [status, of] of byStatus(codes)) {
    const own = withContent(response[status]);
    const problems = of.map((code) => `\`${code}\`: ${problemKind(code).title}`);
    response[status] = {
      description: [...(own?.description === undefined ? [] : [own.description]), ...problems].join(
        '; ',
      ),
      content: { ...own?.content, [problemMediaType]: { schema: { $ref: 'Problem#' } } },
    };
  }
  route.schema = {
    ...route.schema,
    response,
    ...(isOpen ? {} : { security: [{ api_key: [] }] }),
  };
}

/** What a route itself answers with a status that problems have too. */
function withContent(own: unknown): { description?: string; content?: object } | undefined {
  if (typeof own !== 'object' || own === null || 'content' in own) return own as object | undefined;
  return { content: { 'application/json': { schema: own } } };
}

function segmentProblems({ method, url }: RouteOptions): ProblemCode[] {
  const segments = url.split('/');
  // what a PUT names need not be there yet
  if (method === 'PUT') segments.pop();
  return segments.flatMap((segment) => ofSegment[segment] ?? []);
}

function byStatus(codes: Iterable<ProblemCode>): Map<number, ProblemCode[]> {
  const groups = new Map<number, ProblemCode[]>();
  for (const code of codes) {
    const { status } = problemKind(code);
    groups.set(status, [...(groups.get(status) ?? []), code]);
  }
  return groups;
}
