import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import Type from 'typebox';
import { type Delivery, findEvent, listDeliveries } from '#db/events.ts';
import { publishEventsMax } from '#db/publish.ts';
import { eventJson } from '#runtime/cloudevents.ts';
import { messagingAttributes } from '#runtime/messaging-spans.ts';
import { markFailed, type Span, type Spanned, withSpan } from '#runtime/tracing.ts';
import type { AppDependencies } from '../dependencies.ts';
import type { DirectoryTopic } from '../directory.ts';
import { topicOf } from '../lookups.ts';
import { Problem } from '../problems.ts';
import { readPublishBody, type PublishBody } from '../publish/publish-body.ts';
import { answerOf, toPublishRequest, traceOf } from '../publish/publish-request.ts';
import type { PublishAnswer } from '../publish/publisher.ts';
import { Deliveries } from '../schemas/delivery.ts';
import {
  CloudEvent,
  EventParams,
  NewEvent,
  PublishedEvent,
  PublishedEvents,
} from '../schemas/event.ts';
import { TopicParams } from '../schemas/topic.ts';

/** As a receive hands it out, without what belongs to a lease. */
const StoredEvent = Type.Object({
  event_id: Type.String({ description: "The broker's id." }),
  published_at: Type.String(),
  expires_at: Type.String({ description: 'When its retention ends.' }),
  event: CloudEvent,
});

const PublishHeaders = Type.Object({
  'idempotency-key': Type.Optional(
    Type.String({
      description:
        "1 to 255 visible ASCII characters, in quotes or not. The same key with the same body inside the topic's deduplication window publishes nothing and is answered as the first time; with another body it is refused.",
    }),
  ),
  traceparent: Type.Optional(
    Type.String({
      description: 'W3C Trace Context; kept with the events that carry none themselves.',
    }),
  ),
  tracestate: Type.Optional(Type.String()),
});

const dataDepthMax = 128;
const jsonType = 'application/json; charset=utf-8';
const jsonMediaType = /^application\/json *(?:; *charset *= *"?utf-8"? *)?$/i;

/** Publishing, and looking at what was published. */
export function eventRoutes(app: FastifyInstance, deps: AppDependencies): void {
  void app.register(async (scope) => {
    addRawBodyParser(scope);
    publishRoute(scope, deps);
  });
  readRoutes(app, deps);
}

/** Bodies of publishes stay bytes: `data` must not be parsed on its way. */
function addRawBodyParser(scope: FastifyInstance): void {
  scope.removeAllContentTypeParsers();
  scope.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => {
    const problem = wrongMediaType(request.headers['content-type'] ?? '');
    if (problem === undefined) done(null, body);
    else done(problem, undefined);
  });
}

function wrongMediaType(contentType: string): Problem | undefined {
  if (jsonMediaType.test(contentType)) return undefined;
  const detail = /^application\/cloudevents/i.test(contentType)
    ? "CloudEvents' structured and batch modes are not taken yet: send application/json."
    : 'The body must be application/json, in UTF-8.';
  return new Problem('unsupported_media_type', detail);
}

interface PublishRoute {
  Params: { topic: string };
  Body: Buffer | undefined;
}

function publishRoute(app: FastifyInstance, deps: AppDependencies): void {
  const { config } = deps;
  const limits = {
    eventBytesMax: config.eventBytesMax,
    eventsMax: publishEventsMax,
    depthMax: dataDepthMax,
  };
  app.post<PublishRoute>(
    '/api/v1/topics/:topic/events',
    {
      bodyLimit: config.publishBodyBytesMax,
      config: { scope: 'publish', topicParam: 'topic' },
      schema: {
        summary: 'Publish one event, or an array of up to 1,000',
        description:
          'Answered when the events are on disk. An array is taken whole or not at all, but for events whose own key (source and id) is known: those are told in results.',
        tags: ['events'],
        params: TopicParams,
        headers: PublishHeaders,
        body: Type.Union([
          NewEvent,
          Type.Array(NewEvent, { minItems: 1, maxItems: publishEventsMax }),
        ]),
        response: { 202: Type.Union([PublishedEvent, PublishedEvents]) },
      },
      // the scanner is stricter than a schema, and the schema would need the body parsed
      validatorCompiler: () => () => true,
    },
    async (request, reply) => {
      const topic = await topicOf(deps.directory, request.params.topic);
      refuseBacklog(deps, topic);
      const body = request.body ?? Buffer.alloc(0);
      const read = readPublishBody(body, limits);
      if ('faults' in read) throw faultProblem(read.faults);
      return publish(deps, { topic, body, read }, { request, reply });
    },
  );
}

type Headers = FastifyRequest['headers'];

interface Publish {
  readonly topic: DirectoryTopic;
  readonly body: Buffer;
  readonly read: PublishBody;
}

async function publish(
  deps: AppDependencies,
  { topic, body, read }: Publish,
  { request, reply }: { request: FastifyRequest<PublishRoute>; reply: FastifyReply },
): Promise<FastifyReply> {
  const { headers } = request;
  const published = await withSpan(
    `send ${topic.name}`,
    () => sendSpan(topic, read, headers),
    (span) => send(deps, { topic, body, read }, { headers, span }),
  );
  const answer = answerOf(published, read, topic);
  if (answer.location !== undefined) void reply.header('location', answer.location);
  return reply.code(202).type(jsonType).send(answer.json);
}

/** Where the caller brings no trace, the events begin with this span. */
function sendSpan(
  topic: DirectoryTopic,
  { events, single }: PublishBody,
  headers: Headers,
): Spanned {
  const of = { operation: 'send', type: 'send', destination: topic.name } as const;
  return {
    kind: traceOf(headers) === undefined ? 'producer' : 'client',
    attributes: messagingAttributes(single ? of : { ...of, messages: events.length }),
  };
}

async function send(
  { directory, publisher }: AppDependencies,
  { topic, body, read }: Publish,
  { headers, span }: { readonly headers: Headers; readonly span: Span },
): Promise<PublishAnswer> {
  const publishRequest = toPublishRequest(read.events, { topic, body, headers });
  let published = await publisher.publish(topic, publishRequest, body.length);
  if (published.status === 'topic_not_found') {
    // the name may have been given to another topic since we looked
    directory.forget('topic', topic.name);
    const current = await directory.topic(topic.name);
    if (current !== undefined && current.id !== topic.id) {
      published = await publisher.publish(current, publishRequest, body.length);
    }
  }
  if (published.status !== 'published') markFailed(span, published.status);
  else if (read.single) {
    const [result] = published.results;
    span.setAttributes({
      'messaging.message.id': result?.id,
      'event_broker.outcome': result?.outcome,
    });
  }
  return published;
}

function refuseBacklog({ admission }: AppDependencies, topic: DirectoryTopic): void {
  const backlog = admission.fullBacklog(topic.id);
  if (backlog === undefined) return;
  const { subscription, waiting_events: waiting, max_backlog: max } = backlog;
  throw new Problem(
    'backlog_full',
    `The subscription ${subscription} has ${waiting} events waiting; the topic's max_backlog is ${max}.`,
  );
}

type Faults = Exclude<ReturnType<typeof readPublishBody>, PublishBody>['faults'];

/** The problem is that of the first fault; all of them are in `errors`. */
function faultProblem(faults: Faults): Problem {
  const [first] = faults;
  const errors = faults.map(({ detail, pointer }) => ({ detail, pointer }));
  return new Problem(first?.code ?? 'invalid_event', first?.detail, { errors });
}

function readRoutes(app: FastifyInstance, deps: AppDependencies): void {
  const { db } = deps;
  const config = { scope: 'consume', topicParam: 'topic' } as const;
  type ReadRoute = { Params: { topic: string; event_id: string } };
  app.get<ReadRoute>(
    '/api/v1/topics/:topic/events/:event_id',
    {
      config,
      schema: {
        summary: 'One event',
        tags: ['events'],
        params: EventParams,
        response: { 200: StoredEvent },
      },
    },
    async (request, reply) => {
      const topic = await topicOf(deps.directory, request.params.topic);
      const stored = await findEvent(db, topic.id, request.params.event_id);
      if (stored === undefined) throw noEvent(request.params.event_id);
      const event = eventJson(
        { ...stored, event_id: stored.origin_id ?? stored.event_id },
        topic.name,
      );
      const { event_id: id, published_at: publishedAt, expires_at: expiresAt } = stored;
      const head = `"event_id":"${id}","published_at":"${String(publishedAt)}","expires_at":"${String(expiresAt)}"`;
      return reply.type(jsonType).send(`{${head},"event":${event}}`);
    },
  );
  app.get<ReadRoute>(
    '/api/v1/topics/:topic/events/:event_id/deliveries',
    {
      config,
      schema: {
        summary: 'What became of an event, by subscription',
        tags: ['events'],
        params: EventParams,
        response: { 200: Deliveries },
      },
    },
    async (request) => {
      const topic = await topicOf(deps.directory, request.params.topic);
      const items = await listDeliveries(db, topic.id, request.params.event_id);
      if (items === undefined) throw noEvent(request.params.event_id);
      return { items: items.map(deliveryToWire) };
    },
  );
}

function deliveryToWire({ history, ...delivery }: Delivery) {
  return {
    ...delivery,
    history: history.map((attempt) => ({
      ...attempt,
      response: attempt.response?.toString('utf8') ?? null,
    })),
  };
}

function noEvent(id: string): Problem {
  return new Problem('event_not_found', `There is no event ${id}, or none any more.`);
}
