import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import { changeSubscription, switchSubscription } from '#db/subscriptions.ts';
import { createEgressPolicy } from '#runtime/egress.ts';
import { controlBodyBytesMax, emptyBodyIsNone } from '../control-body.ts';
import type { AppDependencies } from '../dependencies.ts';
import { checkEndpoint } from '../endpoint-check.ts';
import { noSubscription } from '../lookups.ts';
import {
  Nothing,
  PatchSubscription,
  Subscription,
  SubscriptionParams,
} from '../schemas/subscription.ts';
import { subscriptionToWire } from '../subscription-body.ts';
import { readChange } from '../subscription-change.ts';

/** PATCH, pause and resume of subscriptions. */
export function subscriptionChangeRoutes(app: FastifyInstance, deps: AppDependencies): void {
  addPatch(app, deps);
  addSwitch(app, deps, {
    verb: 'pause',
    summary: 'Stop handing out events',
    description:
      'They go on to arrive and wait; what is leased may still be settled. One that is disabled stays so.',
  });
  addSwitch(app, deps, {
    verb: 'resume',
    summary: 'Hand out events again',
    description:
      'Undoes a pause, and the disabling of an endpoint that said that it is gone (410): change the endpoint first.',
  });
}

const url = '/api/v1/subscriptions/:subscription';
const tags = ['subscriptions'];
const config = { scope: 'admin', subscriptionParam: 'subscription' } as const;

function addPatch(app: FastifyInstance, deps: AppDependencies): void {
  const { db, directory } = deps;
  const egress = createEgressPolicy(deps.config.allowPrivateTargets);
  app.withTypeProvider<TypeBoxTypeProvider>().patch(
    url,
    {
      config: {
        ...config,
        problems: ['subscription_immutable', 'not_supported', 'endpoint_not_allowed'],
      },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Change some settings of a subscription',
        description:
          'Members that are given replace those that there are; of retry_policy and push by member, filter and push.headers whole. Of two changes at once neither is lost. topic and type may be given as they are.',
        params: SubscriptionParams,
        body: PatchSubscription,
        response: { 200: Subscription },
      },
    },
    async (request) => {
      const name = request.params.subscription;
      const change = readChange(name, request.body);
      const endpoint = request.body.push?.endpoint;
      if (endpoint !== undefined) await checkEndpoint(egress, endpoint);
      const changed = await changeSubscription(db, name, change);
      directory.forget('subscription', name);
      if (changed === undefined) throw noSubscription(name);
      return subscriptionToWire(changed);
    },
  );
}

interface Switch {
  readonly verb: 'pause' | 'resume';
  readonly summary: string;
  readonly description: string;
}

function addSwitch(
  app: FastifyInstance,
  { db, directory }: AppDependencies,
  { verb, summary, description }: Switch,
): void {
  app.withTypeProvider<TypeBoxTypeProvider>().post(
    `${url}/${verb}`,
    {
      config,
      bodyLimit: controlBodyBytesMax,
      preValidation: emptyBodyIsNone,
      schema: {
        tags,
        summary,
        description,
        params: SubscriptionParams,
        body: Nothing,
        response: { 200: Subscription },
      },
    },
    async (request) => {
      const name = request.params.subscription;
      const switched = await switchSubscription(db, name, verb);
      directory.forget('subscription', name);
      if (switched === undefined) throw noSubscription(name);
      return subscriptionToWire(switched);
    },
  );
}
