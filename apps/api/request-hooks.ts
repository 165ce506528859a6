import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from '#runtime/logger.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { Problem } from './problems.ts';

const requestIdPattern = /^[A-Za-z0-9._~:-]{1,128}$/;

/** The id of a request: the caller's own where it is harmless, else a new one. */
export function requestId(request: Pick<IncomingMessage, 'headers'>): string {
  const given = request.headers['x-request-id'];
  return typeof given === 'string' && requestIdPattern.test(given) ? given : randomUUID();
}

export interface RequestHookOptions {
  readonly logger: Pick<Logger, 'info' | 'debug' | 'warn'>;
  readonly metrics: Pick<Metrics, 'recordHttpRequest'>;
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
    const isOpen = request.is404 || request.routeOptions.config.scope === 'none';
    if (!isOpen && !options.isStarted()) throw new Problem('starting');
    if (!isOpen) refuseEncoding(request);
  });

  app.addHook('onSend', async (_request, reply) => {
    // a client that keeps its connection would come back to a process that is gone
    if (options.isDraining()) reply.header('connection', 'close');
  });

  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'unmatched';
    const { method } = request;
    const status = reply.statusCode;
    const durationMs = reply.elapsedTime;
    metrics.recordHttpRequest({ method, route, status, durationSeconds: durationMs / 1000 });
    logger[levelOf(request, reply)](accessLine(request, reply), 'request');
  });
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

function accessLine(request: FastifyRequest, reply: FastifyReply) {
  return {
    request_id: request.id,
    method: request.method,
    path: request.url.split('?', 1)[0],
    status: reply.statusCode,
    duration_ms: Math.round(reply.elapsedTime * 10) / 10,
    ip: request.ip,
    key: request.apiKey?.name,
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
