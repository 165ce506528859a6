import type { FastifyInstance, FastifyReply } from 'fastify';
import Type from 'typebox';
import type { OpsAnswer, OpsHandlers } from '#runtime/ops-server.ts';
import { Health } from '../schemas/status.ts';

/** Liveness, readiness and metrics; open to everybody, and not counted against any limit. */
export function opsRoutes(app: FastifyInstance, handlers: OpsHandlers): void {
  const config = { scope: 'none', rateLimit: false } as const;
  const tags = ['operation'];
  app.get(
    '/api/health/live',
    {
      config,
      schema: {
        tags,
        summary: 'Liveness: the process turns its event loop; asks nobody',
        response: { 204: Type.Null({ description: 'It does.' }) },
      },
    },
    async (_request, reply) => answer(reply, handlers.live()),
  );
  app.get(
    '/api/health',
    {
      config,
      schema: {
        tags,
        summary: 'Readiness: whether requests should be sent here',
        response: { 200: healthAnswer('Ready'), 503: healthAnswer('Not ready, or draining') },
      },
    },
    async (_request, reply) => answer(reply, await handlers.health()),
  );
  app.get(
    '/api/metrics',
    {
      config,
      schema: {
        tags,
        summary: "Metrics in Prometheus' text format, or in OpenMetrics where Accept asks for it",
        response: {
          200: {
            description: 'All metrics of this replica',
            content: {
              'text/plain': { schema: Type.String() },
              'application/openmetrics-text': { schema: Type.String() },
            },
          },
        },
      },
    },
    async (request, reply) => answer(reply, await handlers.metrics(request.headers.accept)),
  );
}

function healthAnswer(description: string) {
  return { description, content: { 'application/json': { schema: Health } } };
}

async function answer(reply: FastifyReply, { status, contentType, body }: OpsAnswer) {
  if (contentType !== undefined) reply.type(contentType);
  return reply.code(status).send(body === '' ? undefined : body);
}
