import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import { readStatus } from '#db/stats.ts';
import { version } from '#runtime/version.ts';
import { requireAllTopics } from '../auth.ts';
import type { AppDependencies } from '../dependencies.ts';
import { Status } from '../schemas/status.ts';

/** How the whole broker does. */
export function statusRoutes(app: FastifyInstance, { config, db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    '/api/status',
    {
      config: { scope: 'admin' },
      schema: {
        tags: ['operation'],
        summary: 'Processes, leader and backlog',
        response: { 200: Status },
      },
    },
    async (request) => {
      requireAllTopics(request);
      const { processes, ...status } = await readStatus(db);
      return { version, instance: config.instance, ...status, processes: [...processes] };
    },
  );
}
