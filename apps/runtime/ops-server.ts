import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Logger } from './logger.ts';
import type { Metrics } from './metrics.ts';
import type { ProcessKit } from './process.ts';
import { version } from './version.ts';

/** Something that must work before work is sent here; it throws when it does not. */
export type ReadinessCheck = {
  readonly name: string;
  readonly check: (signal: AbortSignal) => void | Promise<void>;
  /** The check counts as failed after so many milliseconds (2000). */
  readonly timeoutMs?: number;
};

export type OpsOptions = {
  readonly service: string;
  readonly checks: readonly ReadinessCheck[];
  /** True from the beginning of the shutdown: readiness is then false without asking. */
  readonly isDraining: () => boolean;
  readonly metrics: Pick<Metrics, 'expose' | 'declareHealthChecks' | 'recordHealthCheckFailure'>;
  /** Gets one line when readiness changes. */
  readonly logger?: Pick<Logger, 'warn' | 'info'>;
};

/** An answer that any HTTP server can send. */
export type OpsAnswer = {
  readonly status: number;
  readonly contentType: string | undefined;
  readonly body: string;
};

export type OpsHandlers = {
  /** 204 while the process turns its event loop; asks nobody. */
  readonly live: () => OpsAnswer;
  /** 200 when every check passes, else 503 with the names of those that fail. */
  readonly health: () => Promise<OpsAnswer>;
  /** Prometheus' text format, or OpenMetrics where the Accept header asks for it. */
  readonly metrics: (accept?: string) => Promise<OpsAnswer>;
};

type CheckResult = { readonly name: string; readonly status: 'ok' | 'failed' | 'timeout' };
type Outcome = CheckResult & { readonly error?: unknown };

/** Handlers of `health/live`, `health` and `metrics`, for the API's server and for our own. */
export function createOpsHandlers(options: OpsOptions): OpsHandlers {
  let running: Promise<Outcome[]> | undefined;
  let wasReady: boolean | undefined;
  options.metrics.declareHealthChecks(options.checks.map(({ name }) => name));

  // Health is open to everybody, so requests at the same time share one round of checks.
  function runChecks(): Promise<Outcome[]> {
    running ??= Promise.all(options.checks.map(runCheck))
      .then((outcomes) => {
        for (const { name, status } of outcomes) {
          if (status !== 'ok') options.metrics.recordHealthCheckFailure(name);
        }
        return outcomes;
      })
      .finally(() => {
        running = undefined;
      });
    return running;
  }

  function noteReadiness(isReady: boolean, outcomes: readonly Outcome[]): void {
    if (isReady === wasReady) return;
    const failed = outcomes.find((outcome) => outcome.status !== 'ok');
    if (!isReady) {
      options.logger?.warn({ check: failed?.name, err: failed?.error }, 'not ready');
    } else if (wasReady !== undefined) options.logger?.info('ready again');
    wasReady = isReady;
  }

  async function health(): Promise<OpsAnswer> {
    const head = { service: options.service, version };
    if (options.isDraining()) return asJson(503, { status: 'draining', ...head, checks: [] });
    const outcomes = await runChecks();
    const isReady = outcomes.every((outcome) => outcome.status === 'ok');
    noteReadiness(isReady, outcomes);
    const checks: CheckResult[] = outcomes.map(({ name, status }) => ({ name, status }));
    const status = isReady ? 'ready' : 'not_ready';
    return asJson(isReady ? 200 : 503, { status, ...head, checks });
  }

  return {
    live: () => ({ status: 204, contentType: undefined, body: '' }),
    health,
    metrics: async (accept) => ({ status: 200, ...(await options.metrics.expose(accept)) }),
  };
}

async function runCheck({ name, check, timeoutMs = 2000 }: ReadinessCheck): Promise<Outcome> {
  const abort = new AbortController();
  const { promise: timedOut, resolve } = Promise.withResolvers<Outcome>();
  const timer = setTimeout(() => resolve({ name, status: 'timeout' }), timeoutMs);
  const checked = (async (): Promise<Outcome> => {
    try {
      await check(abort.signal);
      return { name, status: 'ok' };
    } catch (error) {
      return { name, status: 'failed', error };
    }
  })();
  const outcome = await Promise.race([checked, timedOut]);
  clearTimeout(timer);
  // A check that is late holds a connection: it is told to let go of it.
  abort.abort();
  return outcome;
}

function asJson(status: number, body: object): OpsAnswer {
  return { status, contentType: 'application/json; charset=utf-8', body: JSON.stringify(body) };
}

export type OpsServer = AsyncDisposable & {
  /** The port that it listens on, also when 0 was asked for. */
  readonly port: number;
  /** Accepts nothing more, lets running requests end, cuts them after a second; safe twice. */
  readonly close: () => Promise<void>;
};

export type OpsServerOptions = {
  readonly host: string;
  readonly port: number;
  readonly handlers: OpsHandlers;
};

/** All of it for one process: its checks and metrics, served until its shutdown. Resolves with the port. */
export async function serveOps(
  at: { readonly host: string; readonly healthPort: number },
  { logger, lifecycle }: ProcessKit,
  options: Pick<OpsOptions, 'service' | 'checks' | 'metrics'>,
): Promise<number> {
  const isDraining = (): boolean => lifecycle.isStopping;
  const handlers = createOpsHandlers({ ...options, isDraining, logger });
  const server = await startOpsServer({ host: at.host, port: at.healthPort, handlers });
  lifecycle.onShutdown('close', 'health and metrics', async () => server.close());
  return server.port;
}

/**
 * Serves `/api/health/live`, `/api/health` and `/api/metrics` for a process without an API.
 * Rejects when the port is taken, with a message that names it.
 */
export async function startOpsServer(options: OpsServerOptions): Promise<OpsServer> {
  const { host, port, handlers } = options;
  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const answer = await answerTo(handlers, request);
    // Without this a connection that is kept alive holds up close() after its last answer.
    response.shouldKeepAlive &&= server.listening;
    send(response, answer, request.method === 'HEAD');
  }
  const server = createServer((request, response) => void serve(request, response));
  server.headersTimeout = 5000;
  server.requestTimeout = 5000;
  server.keepAliveTimeout = 5000;
  await listen(server, { host, port });
  const address = server.address();
  let closing: Promise<void> | undefined;
  const close = (): Promise<void> => (closing ??= closeServer(server));
  return {
    port: typeof address === 'object' && address !== null ? address.port : port,
    close,
    [Symbol.asyncDispose]: close,
  };
}

async function answerTo(handlers: OpsHandlers, request: IncomingMessage): Promise<OpsAnswer> {
  try {
    return await route(handlers, request);
  } catch {
    // Nothing to add for the caller; a registry that fails is a defect that its tests find.
    return asJson(500, { status: 'failed' });
  }
}

function send(response: ServerResponse, answer: OpsAnswer, isHead: boolean): void {
  const { status, contentType, body } = answer;
  if (contentType !== undefined) response.setHeader('content-type', contentType);
  response.setHeader('cache-control', 'no-store');
  response.writeHead(status).end(isHead ? undefined : body);
}

function route(handlers: OpsHandlers, request: IncomingMessage): OpsAnswer | Promise<OpsAnswer> {
  const path = request.url?.split('?', 1)[0];
  const handler = {
    '/api/health/live': handlers.live,
    '/api/health': handlers.health,
    '/api/metrics': () => handlers.metrics(request.headers.accept),
  }[path ?? ''];
  if (handler === undefined) return asJson(404, { status: 'not_found' });
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    return asJson(405, { status: 'method_not_allowed' });
  }
  return handler();
}

async function listen(server: Server, at: { host: string; port: number }): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const isTaken = error.code === 'EADDRINUSE';
      const where = `port ${at.port} on ${at.host}`;
      const message = isTaken ? `${where} is already in use` : `cannot listen on ${where}`;
      reject(new Error(`HEALTH_PORT: ${message}`, { cause: error }));
    });
    server.listen(at.port, at.host, resolve);
  });
}

async function closeServer(server: Server): Promise<void> {
  const cut = setTimeout(() => server.closeAllConnections(), 1000);
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    server.closeIdleConnections();
  });
  clearTimeout(cut);
}
