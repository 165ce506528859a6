import cors from '@fastify/cors';
import helmet from '@fastify/helmet';
import rateLimit from '@fastify/rate-limit';
import fastify, { type FastifyBaseLogger, type FastifyInstance, LogController } from 'fastify';
import type { ApiConfig } from '#runtime/config.ts';
import type { Logger } from '#runtime/logger.ts';
import { createOpsHandlers, type ReadinessCheck } from '#runtime/ops-server.ts';
import { createAuthHook } from './auth.ts';
import { addControlBodyParser } from './control-body.ts';
import type { AppDependencies } from './dependencies.ts';
import { networkOf } from './failure-limit.ts';
import { addNotFoundHandler, answerClientError } from './http-errors.ts';
import { addOpenApi, openApiRoutes } from './openapi.ts';
import { problemCodes } from './problem-codes.ts';
import { createProblemHandler, Problem } from './problems.ts';
import { addRequestHooks, requestId } from './request-hooks.ts';
import { addServerSpans } from './server-span.ts';
import { apiKeyRoutes } from './routes/api-keys.ts';
import { deadLetterRoutes } from './routes/dead-letters.ts';
import { eventRoutes } from './routes/events.ts';
import { jobRoutes } from './routes/jobs.ts';
import { logLevelRoutes } from './routes/log-levels.ts';
import { opsRoutes } from './routes/ops.ts';
import { receiveRoutes } from './routes/receive.ts';
import { statusRoutes } from './routes/status.ts';
import { subscriptionChangeRoutes } from './routes/subscription-changes.ts';
import { subscriptionRoutes } from './routes/subscriptions.ts';
import { topicRoutes } from './routes/topics.ts';

export interface AppOptions {
  /** What must work for the replica to be ready. */
  readonly checks?: readonly ReadinessCheck[];
  /** False until the database is there and migrated; until then only health is answered. */
  readonly isStarted?: () => boolean;
  /** Wrong keys that one address may show in a window. */
  readonly authFailures?: { readonly max: number; readonly windowMs: number };
}

// a long poll lasts up to 20 s, and two statements of 5 s may follow
const handlerTimeoutMs = 45_000;
const silentConnectionMs = 60_000;
const headersTimeoutMs = 15_000;

/** The HTTP side of a replica: every hook, every route; not listening yet. */
export async function buildApp(
  deps: AppDependencies,
  options: AppOptions = {},
): Promise<FastifyInstance> {
  const { config, directory, logger, metrics } = deps;
  const { checks = [], isStarted = () => true, authFailures } = options;
  const isDraining = (): boolean => deps.isDraining();
  const app = createServer(deps);
  metrics.declareHttpProblems(problemCodes);
  addNotFoundHandler(app);
  requireScopes(app);
  app.setErrorHandler(createProblemHandler(logger));
  addServerSpans(app);
  addRequestHooks(app, { logger, metrics, isStarted, isDraining });
  await addSecurityHeaders(app, config);
  app.addHook(
    'onRequest',
    createAuthHook({
      directory,
      ...(authFailures && {
        failuresMax: authFailures.max,
        failureWindowMs: authFailures.windowMs,
      }),
    }),
  );
  if (config.enableRateLimit) await addRateLimit(app, config);
  await addOpenApi(app);

  opsRoutes(app, createOpsHandlers({ service: 'api', checks, isDraining, metrics, logger }));
  openApiRoutes(app);
  addControlBodyParser(app);
  for (const addRoutes of [
    topicRoutes,
    eventRoutes,
    subscriptionRoutes,
    subscriptionChangeRoutes,
    receiveRoutes,
    deadLetterRoutes,
    jobRoutes,
    apiKeyRoutes,
    logLevelRoutes,
    statusRoutes,
  ]) {
    addRoutes(app, deps);
  }
  await app.ready();
  return app;
}

/** What Fastify itself says is only of interest when something is wrong. */
function frameworkLogger(logger: Logger): FastifyBaseLogger {
  return logger.child({}, { level: logger.isLevelEnabled('warn') ? 'warn' : logger.level });
}

function createServer({ config, logger, metrics }: AppDependencies): FastifyInstance {
  const handleProblem = createProblemHandler(logger);
  const app = fastify({
    loggerInstance: frameworkLogger(logger),
    // one line per request is enough, and ours has the names that we use
    logController: new LogController({ disableRequestLogging: true }),
    childLoggerFactory: (parent) => parent,
    genReqId: requestId,
    requestIdHeader: false,
    trustProxy: config.trustProxy.length === 0 ? false : [...config.trustProxy],
    bodyLimit: config.publishBodyBytesMax,
    requestTimeout: config.requestTimeoutMs,
    connectionTimeout: Math.max(silentConnectionMs, config.requestTimeoutMs),
    keepAliveTimeout: config.keepAliveTimeoutMs,
    handlerTimeout: handlerTimeoutMs,
    maxRequestsPerSocket: 0,
    http: {
      headersTimeout: Math.min(headersTimeoutMs, config.requestTimeoutMs),
      connectionsCheckingInterval: 1000,
    },
    routerOptions: { maxParamLength: 256 },
    // while it closes, what came over an open connection is still served
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    clientErrorHandler: (error, socket) => answerClientError(error, socket, metrics),
    frameworkErrors: (error, request, reply) => void handleProblem(error, request, reply),
    ajv: {
      customOptions: {
        coerceTypes: false,
        removeAdditional: false,
        useDefaults: false,
        allErrors: false,
        allowUnionTypes: true,
      },
    },
  });
  app.removeContentTypeParser('text/plain');
  return app;
}

/** A route that forgot to say who may call it is a defect that shows at the start, not in production. */
function requireScopes(app: FastifyInstance): void {
  app.addHook('onRoute', (route) => {
    if (route.method === 'OPTIONS') route.config = { ...route.config, scope: 'none' };
    if (route.config?.scope === undefined) {
      throw new Error(`the route ${String(route.method)} ${route.url} does not say its scope`);
    }
  });
}

async function addSecurityHeaders(app: FastifyInstance, config: ApiConfig): Promise<void> {
  await app.register(helmet, {
    // of this host alone: what else is under its domain is not ours
    strictTransportSecurity: { includeSubDomains: false },
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
    },
  });
  if (config.allowedOrigins.length === 0) return;
  const isAny = config.allowedOrigins.includes('*');
  await app.register(cors, {
    origin: isAny ? '*' : [...config.allowedOrigins],
    methods: ['GET', 'HEAD', 'PUT', 'PATCH', 'POST', 'DELETE'],
    allowedHeaders: [
      'authorization',
      'content-type',
      'idempotency-key',
      'traceparent',
      'tracestate',
      'x-request-id',
    ],
    exposedHeaders: [
      'location',
      'ratelimit-limit',
      'ratelimit-remaining',
      'ratelimit-reset',
      'retry-after',
      'x-request-id',
    ],
    maxAge: 600,
    // what is no preflight is answered like one, and not with a text of the plugin's own
    strictPreflight: false,
  });
}

async function addRateLimit(app: FastifyInstance, config: ApiConfig): Promise<void> {
  await app.register(rateLimit, {
    global: true,
    // after the key was found out, before the body is read
    hook: 'preParsing',
    max: config.rateLimitMax,
    timeWindow: config.rateLimitWindowMs,
    enableDraftSpec: true,
    cache: 10_000,
    keyGenerator: (request) =>
      request.apiKey === undefined ? networkOf(request.ip) : `key ${request.apiKey.id}`,
    errorResponseBuilder: (_request, { max, ttl }) =>
      new Problem(
        'rate_limited',
        `At most ${max} requests in ${config.rateLimitWindowMs} ms are taken from one API key, or one address without one.`,
        { retryAfterSeconds: ttl / 1000 },
      ),
  });
}
