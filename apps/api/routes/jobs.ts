import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import { isId } from '#db/events.ts';
import { findJob, type JobRow } from '#db/jobs.ts';
import { requireTopic } from '../auth.ts';
import type { AppDependencies } from '../dependencies.ts';
import { Problem } from '../problems.ts';
import { Job, JobParams } from '../schemas/job.ts';

/** How far a job has come. */
export function jobRoutes(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    '/api/v1/jobs/:id',
    {
      config: { scope: 'admin', problems: ['job_not_found'] },
      schema: {
        tags: ['jobs'],
        summary: 'Read a job',
        params: JobParams,
        response: { 200: Job },
      },
    },
    async (request) => {
      const { id } = request.params;
      const job = isId(id) ? await findJob(db, id) : undefined;
      if (job === undefined) throw new Problem('job_not_found', `There is no job ${id}.`);
      requireTopic(request, job.topic);
      return { ...job, progress: progressOf(job) };
    },
  );
}

/** Of what was purged meanwhile nothing is done: a job that has ended is all of it. */
function progressOf({ state, done, total }: JobRow): number {
  return state === 'succeeded' ? 1 : done / Math.max(total, 1);
}
