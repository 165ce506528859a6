import { type TypeBoxTypeProvider, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import { deleteTopic, findTopic, listTopics, putTopic, type TopicRow } from '#db/topics.ts';
import { topicPatterns } from '../auth.ts';
import { controlBodyBytesMax, emptyBodyIsNone } from '../control-body.ts';
import { decodeCursor, encodeCursor, pageOf } from '../cursor.ts';
import type { AppDependencies } from '../dependencies.ts';
import { noTopic } from '../lookups.ts';
import { Problem } from '../problems.ts';
import { PageQuery } from '../schemas/page.ts';
import { namePattern, PutTopic, Topic, TopicPage, TopicParams } from '../schemas/topic.ts';

/** PUT, GET and DELETE of topics, and their list. */
export function topicRoutes(app: FastifyInstance, deps: AppDependencies): void {
  addPut(app, deps);
  addGet(app, deps);
  addDelete(app, deps);
  addList(app, deps);
}

const url = '/api/v1/topics/:topic';
const tags = ['topics'];

function addPut(app: FastifyInstance, { config, db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().put(
    url,
    {
      config: { scope: 'admin', topicParam: 'topic' },
      bodyLimit: controlBodyBytesMax,
      preValidation: emptyBodyIsNone,
      schema: {
        tags,
        summary: 'Create a topic, or replace its settings',
        description: 'What is not given goes back to its default.',
        params: TopicParams,
        body: PutTopic,
        response: { 200: Topic, 201: Topic },
      },
    },
    async (request, reply) => {
      const name = request.params.topic;
      const result = await putTopic(db, name, {
        retention_seconds: request.body.retention_seconds ?? 604_800,
        deduplication_seconds: request.body.deduplication_seconds ?? 86_400,
        deduplicate_event_ids: request.body.deduplicate_event_ids ?? true,
        max_backlog: request.body.max_backlog ?? config.queueMaxSize,
      });
      directory.forget('topic', name);
      return reply.code(result.status === 'created' ? 201 : 200).send(toWire(result.topic));
    },
  );
}

function addGet(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    url,
    {
      config: { scope: 'admin', topicParam: 'topic' },
      schema: {
        tags,
        summary: 'Read a topic',
        params: TopicParams,
        response: { 200: Topic },
      },
    },
    async (request) => {
      const topic = await findTopic(db, request.params.topic);
      if (topic === undefined) throw noTopic(request.params.topic);
      return toWire(topic);
    },
  );
}

function addDelete(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().delete(
    url,
    {
      config: {
        scope: 'admin',
        topicParam: 'topic',
        problems: ['topic_has_subscriptions'],
      },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Delete a topic that has no subscriptions',
        description: 'Its name is free again at once; its events go with their retention.',
        params: TopicParams,
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      const name = request.params.topic;
      const { status } = await deleteTopic(db, name);
      directory.forget('topic', name);
      if (status === 'not_found') throw noTopic(name);
      if (status === 'has_subscriptions') {
        throw new Problem('topic_has_subscriptions', `Delete the subscriptions of ${name} first.`);
      }
      return reply.code(204).send(null);
    },
  );
}

function addList(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    '/api/v1/topics',
    {
      config: { scope: 'admin', problems: ['invalid_cursor'] },
      validatorCompiler: TypeBoxValidatorCompiler,
      schema: {
        tags,
        summary: 'List topics by name',
        querystring: PageQuery,
        response: { 200: TopicPage },
      },
    },
    async (request) => {
      const { limit = 50, cursor } = request.query;
      const after = decodeCursor('topics', cursor, (last) => new RegExp(namePattern).test(last));
      const page = { limit: limit + 1, after, patterns: topicPatterns(request) };
      return pageOf(await listTopics(db, page), limit, {
        item: toWire,
        cursor: (row) => encodeCursor('topics', row.name),
      });
    },
  );
}

function toWire({ id: _id, state: _state, ...topic }: TopicRow): Topic {
  return topic;
}
