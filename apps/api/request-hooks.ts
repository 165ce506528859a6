import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from '#runtime/logger.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { Problem } from './problems.ts';
import { inServerSpan } from './server-span.ts';

const requestIdPattern = /^[A-Za-z0-9._~:-]{1,128}$/;

/** The id of a request: the caller's own where it is harmless, else a new one. */
export function requestId(request: Pick<IncomingMessage, 'headers'>): string {
  const given = request.headers['x-request-id'];
  return typeof given === 'string' && requestIdPattern.test(given) ? given : randomUUID();
}

export interface RequestHookOptions {
  readonly logger: Pick<Logger, 'info' | 'debug' | 'warn'>;
  readonly metrics: Pick<Metrics, 'recordHttpRequest' | 'recordHttpProblem'>;
  /** False until the database is there and migrated. */
  isStarted(): boolean;
  isDraining(): boolean;
}

/** What every request goes through: headers of every answer, the gate of the start, the metric and the access log line. */
export function addRequestHooks(app: FastifyInstance, options: RequestHookOptions): void {
  const { logger, metrics } = options;
  app.decorateRequest('problemCode', undefined);
  app.decorateRequest('apiKey', undefined);

  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id).header('cache-control', 'no-store');
    // to who goes away nothing is sent, and then no onResponse comes either
    reply.raw.once('close', () => {
      if (!reply.raw.writableFinished) tell(request, reply);
    });
    const isOpen = request.is404 || request.routeOptions.config.scope === 'none';
    if (!isOpen && !options.isStarted()) throw new Problem('starting');
    if (!isOpen) refuseEncoding(request);
  });

  app.addHook('onSend', async (_request, reply) => {
    // a client that keeps its connection would come back to a process that is gone
    if (options.isDraining()) reply.header('connection', 'close');
  });

  const told = new WeakSet<FastifyRequest>();
  function tell(request: FastifyRequest, reply: FastifyReply): void {
    if (told.has(request)) return;
    told.add(request);
    const route = request.routeOptions.url ?? 'unmatched';
    const { method } = request;
    const status = statusOf(reply);
    const durationMs = reply.elapsedTime;
    metrics.recordHttpRequest({ method, route, status, durationSeconds: durationMs / 1000 });
    if (request.problemCode !== undefined) metrics.recordHttpProblem(request.problemCode);
    inServerSpan(request, () =>
      logger[levelOf(request, reply)](requestLine(request, reply), 'request'),
    );
  }

  app.addHook('onResponse', async (request, reply) => tell(request, reply));
}

/** Of one who went away before there was an answer no status was sent; nginx counts it by this number. */
const clientWentAway = 499;

function statusOf(reply: FastifyReply): number {
  return reply.raw.writableFinished || reply.raw.headersSent ? reply.statusCode : clientWentAway;
}

/** A body that is compressed would be read as it is, and seem to be bad JSON. RFC 9110 section 8.4. */
function refuseEncoding({ headers }: FastifyRequest): void {
  const encoding = headers['content-encoding'];
  if (encoding === undefined || encoding.toLowerCase() === 'identity') return;
  const detail = 'The body must come as it is, without a Content-Encoding.';
  throw new Problem('unsupported_media_type', detail, {
    headers: { 'accept-encoding': 'identity' },
  });
}

/** The one line of a request, as deploy/logs.md has it. What does not apply is undefined, and left out. */
export function requestLine(request: FastifyRequest, reply: FastifyReply) {
  const { url: route, config } = request.routeOptions;
  const named = (parameter: string | undefined): string | undefined =>
    parameter && (request.params as Readonly<Record<string, string>>)[parameter];
  return {
    request_id: request.id,
    method: request.method,
    route: route ?? 'unmatched',
    path: request.url.split('?', 1)[0],
    status: statusOf(reply),
    duration_ms: Math.round(reply.elapsedTime * 10) / 10,
    ip: request.ip,
    key: request.apiKey?.name,
    topic: named(config.topicParam),
    subscription: named(config.subscriptionParam),
    code: request.problemCode,
    // the client went away before it had its answer
    aborted: reply.raw.writableFinished ? undefined : true,
  };
}

/** What goes well on the hot path, and what is asked every few seconds, is said only to who asks for it. */
function levelOf(request: FastifyRequest, reply: FastifyReply): 'warn' | 'info' | 'debug' {
  const { scope } = request.routeOptions.config;
  // that readiness changed is said once, by its handler
  if (scope === 'none') return 'debug';
  if (reply.statusCode >= 500) return 'warn';
  const isHot = request.method === 'POST' && (scope === 'publish' || scope === 'consume');
  return isHot && reply.statusCode < 400 ? 'debug' : 'info';
}
