import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import { listLogLevels, setLogLevel } from '#db/log-levels.ts';
import { requireAllTopics } from '../auth.ts';
import { controlBodyBytesMax } from '../control-body.ts';
import type { AppDependencies } from '../dependencies.ts';
import { LogLevels, LogLevelsSet } from '../schemas/log-level.ts';

const url = '/api/v1/log-levels';
const tags = ['operation'];

/** How much the processes tell in their logs, for a while and without a restart. Only for admins of all topics. */
export function logLevelRoutes(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    url,
    {
      config: { scope: 'admin' },
      schema: {
        tags,
        summary: 'Log levels that are set for a while',
        response: { 200: LogLevels },
      },
    },
    async (request) => {
      requireAllTopics(request);
      return { items: await listLogLevels(db) };
    },
  );
  app.withTypeProvider<TypeBoxTypeProvider>().put(
    url,
    {
      config: { scope: 'admin' },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Set the log level of processes for a while',
        description:
          'Every process follows within a second, or 30 s where it did not hear of it. Lines of level debug and trace may be many.',
        body: LogLevelsSet,
        response: { 200: LogLevels },
      },
    },
    async (request) => {
      requireAllTopics(request);
      const { service = '*', level, duration_seconds: seconds = 600 } = request.body;
      await setLogLevel(db, service, { level, seconds });
      return { items: await listLogLevels(db) };
    },
  );
}
