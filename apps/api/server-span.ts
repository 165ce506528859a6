import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { isTracing, markFailed, type OpenSpan, openServerSpan } from '#runtime/tracing.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Absent where no traces are made, and of what makes none. */
    serverSpan?: OpenSpan;
  }
}

/** What is asked every few seconds tells nothing. */
const withoutSpan = /^\/api\/(?:health|metrics)(?:[/?]|$)/;

/**
 * The span of each request, by OpenTelemetry's conventions for HTTP servers. Made here and not by the instrumentation of node:http,
 * which costs too much for requests that are not kept: see apps/runtime/telemetry.ts.
 * https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
 */
export function addServerSpans(app: FastifyInstance): void {
  app.decorateRequest('serverSpan', undefined);
  if (!isTracing()) return;
  app.addHook('onRequest', (request, reply, done) => {
    if (withoutSpan.test(request.url)) return done();
    const open = openServerSpan(request.method, request.headers);
    request.serverSpan = open;
    if (open.span.isRecording()) describe(request, reply, open);
    open.run(done);
  });
}

/** Runs something of a request inside its span, where it has one. */
export function inServerSpan(request: FastifyRequest, run: () => void): void {
  if (request.serverSpan === undefined) run();
  else request.serverSpan.run(run);
}

function describe(request: FastifyRequest, reply: FastifyReply, { span }: OpenSpan): void {
  const { method, routeOptions, headers } = request;
  // the pattern of the route, because the path has names in it
  if (routeOptions.url !== undefined) span.updateName(`${method} ${routeOptions.url}`);
  span.setAttributes({
    'http.request.method': method,
    'http.route': routeOptions.url,
    'url.scheme': request.protocol,
    'url.path': request.url.split('?', 1)[0],
    'client.address': request.ip,
    'network.protocol.version': request.raw.httpVersion,
    'user_agent.original': headers['user-agent'],
    'event_broker.request_id': request.id,
  });
  reply.raw.once('close', () => {
    const { headersSent, statusCode, writableFinished } = reply.raw;
    if (headersSent) span.setAttribute('http.response.status_code', statusCode);
    if (!writableFinished) markFailed(span, 'aborted');
    else if (statusCode >= 500) markFailed(span, String(statusCode));
    span.end();
  });
}
