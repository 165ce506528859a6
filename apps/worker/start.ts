import { hostname } from 'node:os';
import { sql } from 'kysely';
import { createDatabase } from '#db/client.ts';
import { findLogLevel } from '#db/log-levels.ts';
import { waitForSchema } from '#db/schema-version.ts';
import { createWakeups } from '#db/wakeups.ts';
import type { WorkerConfig } from '#runtime/config.ts';
import { createEgressPolicy } from '#runtime/egress.ts';
import type { Lifecycle } from '#runtime/lifecycle.ts';
import { followLogLevel } from '#runtime/log-level.ts';
import { startLoop } from '#runtime/loop.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { serveOps } from '#runtime/ops-server.ts';
import { Outage } from '#runtime/outage.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { createProcessMetrics } from '#runtime/process-metrics.ts';
import { createSealer } from '#runtime/sealer.ts';
import { version } from '#runtime/version.ts';
import { observeWakeups } from '#runtime/wakeup-observer.ts';
import { Dispatcher } from './dispatcher.ts';
import { DueWatch } from './due-watch.ts';
import { EndpointClient } from './endpoint-client.ts';
import { PushDirectory } from './push-directory.ts';
import { Registration } from './registration.ts';
import { SettleBuffer } from './settle-buffer.ts';

export interface WorkerDependencies extends ProcessKit {
  /** Metrics of a process that serves them itself; without them the worker serves its own on HEALTH_PORT. */
  readonly metrics?: Metrics;
}

export interface RunningWorker {
  /** Where health and metrics are; undefined where somebody else serves them. */
  readonly port: number | undefined;
}

/** Starts the worker, and registers its shutdown; waits for the database and its schema. */
export async function startWorker(
  config: WorkerConfig,
  dependencies: WorkerDependencies,
): Promise<RunningWorker> {
  const { logger, lifecycle } = dependencies;
  const own = { service: 'worker', namesMax: config.metricsNamesMax };
  const metrics = dependencies.metrics ?? createProcessMetrics(dependencies, own);
  const { statementTimeoutMs } = config;
  const applicationName = `broker-worker-${config.instance}`;
  const database = createDatabase({
    url: config.databaseUrl,
    applicationName,
    poolMax: config.databasePoolMax,
    statementTimeoutMs,
    onQuery: metrics.recordDatabaseQuery,
  });
  metrics.watchPool(() => database.poolState());
  const { db } = database;
  lifecycle.onShutdown('close', 'database', async () => database.close());
  const check = async (): Promise<void> => void (await sql`select from broker.leader`.execute(db));
  const ops = { service: 'worker', metrics, checks: [{ name: 'database', check }] };
  const isAlone = dependencies.metrics === undefined;
  const port = isAlone ? await serveOps(config, dependencies, ops) : undefined;

  await waitForSchema(db, {
    signal: lifecycle.signal,
    onWaiting: (reason, error) => logger.warn({ err: error }, reason),
  });
  const outage = new Outage(logger);
  const wakeups = createWakeups({
    db,
    directUrl: config.databaseDirectUrl ?? config.databaseUrl,
    applicationName,
    ...observeWakeups({ logger, metrics, outage }),
  });
  lifecycle.onShutdown('close', 'wake-ups', async () => wakeups.close());
  const levels = followLogLevel({
    logger,
    level: config.logLevel,
    changes: wakeups,
    read: (service) => findLogLevel(db, service),
  });
  lifecycle.onShutdown('close', 'log level', async () => levels.stop());
  assemble(config, { ...dependencies, metrics, db, wakeups, outage, applicationName });
  logger.info({ health_port: port }, 'worker runs');
  return { port };
}

/** Of the time for a shutdown: how long answers are waited for, so that some is left to settle what they came to. */
const answersShare = 0.6;

interface Parts extends ProcessKit {
  readonly metrics: Metrics;
  readonly db: ReturnType<typeof createDatabase>['db'];
  readonly wakeups: ReturnType<typeof createWakeups>;
  readonly outage: Outage;
  readonly applicationName: string;
}

function assemble(config: WorkerConfig, parts: Parts): void {
  const { db, wakeups, metrics, logger, outage, lifecycle, applicationName } = parts;
  const { statementTimeoutMs } = config;
  const client = new EndpointClient({
    policy: createEgressPolicy(config.allowPrivateTargets),
    idleConnectionsMax: Math.max(1024, config.workerCount),
  });
  const directory = new PushDirectory({
    db,
    wakeups,
    logger,
    sealer: createSealer(config.secretEncryptionKey),
    onChange: (id) => void dispatcher.noteChange(id),
  });
  const settles = new SettleBuffer({
    db,
    wakeups,
    metrics,
    logger,
    outage,
    callsMax: Math.max(1, config.databasePoolMax - 2),
    onSettled: (id, claim, events) => dispatcher.noteSettled(id, claim, events),
  });
  const info = {
    instance: config.instance,
    service: 'worker',
    version,
    host: hostname(),
    pid: process.pid,
  };
  const registration: Registration = new Registration({
    directUrl: config.databaseDirectUrl ?? config.databaseUrl,
    applicationName,
    info,
    logger,
    outage,
    onChange: (session) => dispatcher.noteSession(session),
  });
  const dispatcher: Dispatcher = new Dispatcher({
    db,
    directory,
    client,
    settles,
    metrics,
    logger,
    outage,
    statementTimeoutMs,
    registration,
    slots: config.workerCount,
    bytesMax: config.workerBufferBytesMax,
  });
  const watch = new DueWatch({
    db,
    wakeups,
    logger,
    outage,
    lookBackMs: 2 * statementTimeoutMs,
    onDue: (id, mark) => dispatcher.wake(id, mark),
  });
  const ticks = startLoop({ name: 'tick', intervalMs: 1000, onTick: () => dispatcher.tick() });
  lifecycle.onShutdown('close', 'directory', () => directory[Symbol.dispose]());
  lifecycle.onShutdown('close', 'endpoints', async () => client.close());
  const answersMs = config.shutdownTimeoutMs * answersShare;
  registerDrain(lifecycle, { watch, ticks, dispatcher, settles, registration, answersMs });
}

/** No new claims; what has not begun is given back; what is in flight ends and is settled; only then the registration. */
function registerDrain(
  lifecycle: Lifecycle,
  parts: {
    readonly watch: DueWatch;
    readonly ticks: { stop(): Promise<void> };
    readonly dispatcher: Dispatcher;
    readonly settles: SettleBuffer;
    readonly registration: Registration;
    readonly answersMs: number;
  },
): void {
  const { watch, ticks, dispatcher, settles, registration, answersMs } = parts;
  lifecycle.onShutdown('intake', 'claims', async () => {
    await Promise.all([watch.stop(), ticks.stop(), dispatcher.stop()]);
  });
  lifecycle.onShutdown('drain', 'deliveries', async (deadline) =>
    dispatcher.drain(AbortSignal.any([deadline, AbortSignal.timeout(answersMs)])),
  );
  lifecycle.onShutdown('flush', 'settles', async (deadline) => settles.drain(deadline));
  lifecycle.onShutdown('release', 'registration', async () =>
    registration.close({ holdsLeases: settles.lost > 0 }),
  );
}
