import { type TypeBoxTypeProvider, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import {
  type DeadLetterRow,
  deleteDeadLetter,
  findDeadLetter,
  listDeadLetters,
  purgeDeadLetters,
} from '#db/dead-letters.ts';
import { isId } from '#db/events.ts';
import { createRedriveJob } from '#db/jobs.ts';
import { eventJson } from '#runtime/cloudevents.ts';
import { controlBodyBytesMax, emptyBodyIsNone } from '../control-body.ts';
import { decodeCursor, encodeCursor } from '../cursor.ts';
import type { AppDependencies } from '../dependencies.ts';
import { noSubscription, subscriptionOf } from '../lookups.ts';
import { Problem } from '../problems.ts';
import {
  DeadLetter,
  DeadLetterPage,
  DeadLetterParams,
  Purged,
  Redrive,
} from '../schemas/dead-letter.ts';
import { CreatedJob } from '../schemas/job.ts';
import { PageQuery } from '../schemas/page.ts';
import { SubscriptionParams } from '../schemas/subscription.ts';

/** Lists, shows, deletes and redrives dead letters. */
export function deadLetterRoutes(app: FastifyInstance, deps: AppDependencies): void {
  addList(app, deps);
  addGet(app, deps);
  addDelete(app, deps);
  addPurge(app, deps);
  addRedrive(app, deps);
}

const url = '/api/v1/subscriptions/:subscription/dlq';
const tags = ['dead letters'];
const subscriptionParam = 'subscription';
const json = 'application/json; charset=utf-8';

function addList(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.get<{ Params: { subscription: string }; Querystring: PageQuery }>(
    url,
    {
      config: {
        scope: 'consume',
        subscriptionParam,
        problems: ['invalid_cursor'],
      },
      validatorCompiler: TypeBoxValidatorCompiler,
      schema: {
        tags,
        summary: 'List dead letters, oldest first',
        description: 'A page may hold fewer than limit where events are large.',
        params: SubscriptionParams,
        querystring: PageQuery,
        response: { 200: DeadLetterPage },
      },
    },
    async (request, reply) => {
      const subscription = await subscriptionOf(directory, request.params.subscription);
      const { limit = 50, cursor } = request.query;
      const after = decodeCursor('dead_letters', cursor, isId);
      const { topic_id, id, topic } = subscription;
      const page = await listDeadLetters(db, topic_id, id, { limit, after });
      const last = page.letters.at(-1);
      const next =
        page.hasMore && last !== undefined ? encodeCursor('dead_letters', last.id) : null;
      const items = page.letters.map((letter) => deadLetterJson(letter, topic)).join(',');
      // as text: what was published is handed on as it came
      return reply.type(json).send(`{"items":[${items}],"next_cursor":${JSON.stringify(next)}}`);
    },
  );
}

function addGet(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.get<{ Params: DeadLetterParams }>(
    `${url}/:id`,
    {
      config: {
        scope: 'consume',
        subscriptionParam,
        problems: ['dead_letter_not_found'],
      },
      schema: {
        tags,
        summary: 'Read a dead letter',
        params: DeadLetterParams,
        response: { 200: DeadLetter },
      },
    },
    async (request, reply) => {
      const { topic_id, id, topic } = await subscriptionOf(directory, request.params.subscription);
      const letterId = request.params.id;
      const letter = isId(letterId) ? await findDeadLetter(db, topic_id, id, letterId) : undefined;
      if (letter === undefined) throw noDeadLetter(letterId);
      return reply.type(json).send(deadLetterJson(letter, topic));
    },
  );
}

function addDelete(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().delete(
    `${url}/:id`,
    {
      config: {
        scope: 'admin',
        subscriptionParam,
        problems: ['dead_letter_not_found'],
      },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Delete a dead letter',
        params: DeadLetterParams,
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      const { topic_id, id } = await subscriptionOf(directory, request.params.subscription);
      const letterId = request.params.id;
      if (!isId(letterId)) throw noDeadLetter(letterId);
      const { status } = await deleteDeadLetter(db, topic_id, id, letterId);
      if (status === 'not_found') throw noDeadLetter(letterId);
      return reply.code(204).send(null);
    },
  );
}

function addPurge(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().delete(
    url,
    {
      config: { scope: 'admin', subscriptionParam },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Purge: delete all dead letters that there are now',
        params: SubscriptionParams,
        response: { 200: Purged },
      },
    },
    async (request) => {
      const { topic_id, id } = await subscriptionOf(directory, request.params.subscription);
      return { purged: await purgeDeadLetters(db, topic_id, id) };
    },
  );
}

function addRedrive(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().post(
    `${url}/redrive`,
    {
      config: {
        scope: 'admin',
        subscriptionParam,
        problems: ['job_unfinished'],
      },
      bodyLimit: controlBodyBytesMax,
      preValidation: emptyBodyIsNone,
      schema: {
        tags,
        summary: 'Redrive: put all dead letters that there are now back into the queue',
        description:
          'A job of the leader does it, oldest first; attempts begin at 1 again. GET /api/v1/jobs/{id} shows how far it is.',
        params: SubscriptionParams,
        body: Redrive,
        response: { 202: CreatedJob },
      },
    },
    async (request, reply) => {
      const name = request.params.subscription;
      const { topic_id, id } = await subscriptionOf(directory, name);
      const job = await createRedriveJob(db, topic_id, id, request.body.rate_per_second);
      if (job.status === 'subscription_not_found') throw noSubscription(name);
      if (job.status === 'unfinished') {
        throw new Problem('job_unfinished', `Job ${job.id} is redriving this subscription.`);
      }
      return reply.code(202).header('location', `/api/v1/jobs/${job.id}`).send({ job_id: job.id });
    },
  );
}

function noDeadLetter(id: string): Problem {
  return new Problem('dead_letter_not_found', `There is no dead letter ${id}.`);
}

function deadLetterJson(letter: DeadLetterRow, topic: string): string {
  const eventId = letter.origin_id ?? letter.event_id;
  const head = JSON.stringify({
    id: letter.id,
    event_id: eventId,
    reason: letter.reason,
    last_error: letter.last_error,
    last_status: letter.last_status,
    attempts: letter.attempts,
    published_at: letter.published_at,
    died_at: letter.died_at,
  });
  return `${head.slice(0, -1)},"event":${eventJson({ ...letter, event_id: eventId }, topic)}}`;
}
