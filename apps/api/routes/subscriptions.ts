import { type TypeBoxTypeProvider, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import {
  deleteSubscription,
  findSubscription,
  listSubscriptions,
  putSubscription,
} from '#db/subscriptions.ts';
import { createEgressPolicy } from '#runtime/egress.ts';
import { createSealer } from '#runtime/sealer.ts';
import { requireTopic, topicPatterns } from '../auth.ts';
import { controlBodyBytesMax } from '../control-body.ts';
import { decodeCursor, encodeCursor, pageOf } from '../cursor.ts';
import type { AppDependencies } from '../dependencies.ts';
import { checkEndpoint } from '../endpoint-check.ts';
import { noSubscription, noTopic } from '../lookups.ts';
import { createPushSecret } from '../push-secret.ts';
import {
  CreatedSubscription,
  PutSubscription,
  Subscription,
  SubscriptionPage,
  SubscriptionParams,
  SubscriptionQuery,
} from '../schemas/subscription.ts';
import { namePattern } from '../schemas/topic.ts';
import { readSubscription, subscriptionToWire } from '../subscription-body.ts';
import { immutable } from '../subscription-change.ts';

/** PUT, GET and DELETE of subscriptions, and their list. */
export function subscriptionRoutes(app: FastifyInstance, deps: AppDependencies): void {
  addPut(app, deps);
  addGet(app, deps);
  addDelete(app, deps);
  addList(app, deps);
}

const url = '/api/v1/subscriptions/:subscription';
const tags = ['subscriptions'];

function addPut(app: FastifyInstance, { config, db, directory }: AppDependencies): void {
  const egress = createEgressPolicy(config.allowPrivateTargets);
  const sealer = createSealer(config.secretEncryptionKey);
  app.withTypeProvider<TypeBoxTypeProvider>().put(
    url,
    {
      config: {
        scope: 'admin',
        subscriptionParam: 'subscription',
        problems: [
          'topic_not_found',
          'subscription_immutable',
          'not_supported',
          'endpoint_not_allowed',
        ],
      },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Create a subscription, or replace its settings',
        description:
          'It gets every matching event that is published from then on. What is not given goes back to its default; topic and type never change. The secret of a push subscription is in the answer that creates it and in no other: where that was lost, delete it and create it again.',
        params: SubscriptionParams,
        body: PutSubscription,
        response: { 200: Subscription, 201: CreatedSubscription },
      },
    },
    async (request, reply) => {
      const name = request.params.subscription;
      const wanted = readSubscription(name, request.body, config);
      const { push } = wanted.settings;
      requireTopic(request, wanted.topic);
      if (push !== null) await checkEndpoint(egress, push.endpoint);
      const secret = push === null ? undefined : createPushSecret(sealer);
      const result = await putSubscription(db, { ...wanted, sealSecret: secret?.seal });
      directory.forget('subscription', name);
      if (result.status === 'topic_not_found') throw noTopic(wanted.topic);
      if (result.status === 'immutable') throw immutable(name);
      const subscription = subscriptionToWire(result.subscription);
      if (result.status === 'updated') return reply.code(200).send(subscription);
      return reply.code(201).send({
        ...subscription,
        push: subscription.push && { ...subscription.push, secret: secret?.text ?? '' },
      });
    },
  );
}

function addGet(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    url,
    {
      config: {
        scope: 'consume',
        subscriptionParam: 'subscription',
      },
      schema: {
        tags,
        summary: 'Read a subscription',
        params: SubscriptionParams,
        response: { 200: Subscription },
      },
    },
    async (request) => {
      const subscription = await findSubscription(db, request.params.subscription);
      if (subscription === undefined) throw noSubscription(request.params.subscription);
      return subscriptionToWire(subscription);
    },
  );
}

function addDelete(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().delete(
    url,
    {
      config: {
        scope: 'admin',
        subscriptionParam: 'subscription',
      },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Delete a subscription and what waits for it',
        description: 'Its leases are lost and its name is free again at once.',
        params: SubscriptionParams,
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      const name = request.params.subscription;
      const { status } = await deleteSubscription(db, name);
      directory.forget('subscription', name);
      if (status === 'not_found') throw noSubscription(name);
      return reply.code(204).send(null);
    },
  );
}

function addList(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    '/api/v1/subscriptions',
    {
      config: { scope: 'admin', problems: ['invalid_cursor'] },
      validatorCompiler: TypeBoxValidatorCompiler,
      schema: {
        tags,
        summary: 'List subscriptions by name, of all topics or of one',
        querystring: SubscriptionQuery,
        response: { 200: SubscriptionPage },
      },
    },
    async (request) => {
      const { limit = 50, cursor, topic } = request.query;
      const isName = (last: string): boolean => new RegExp(namePattern).test(last);
      const after = decodeCursor('subscriptions', cursor, isName);
      const page = { limit: limit + 1, after, topic, patterns: topicPatterns(request) };
      return pageOf(await listSubscriptions(db, page), limit, {
        item: subscriptionToWire,
        cursor: (row) => encodeCursor('subscriptions', row.name),
      });
    },
  );
}
