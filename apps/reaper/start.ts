import { hostname } from 'node:os';
import { sql } from 'kysely';
import { createDatabase, type Database } from '#db/client.ts';
import { Candidate } from '#db/leader.ts';
import { heartbeatProcess, registerProcess, unregisterProcess } from '#db/processes.ts';
import { waitForSchema } from '#db/schema-version.ts';
import { createWakeups, NotificationsLost, type Wakeups } from '#db/wakeups.ts';
import type { ReaperConfig } from '#runtime/config.ts';
import { startLoop } from '#runtime/loop.ts';
import { createMetrics, type Metrics } from '#runtime/metrics.ts';
import { createOpsHandlers, startOpsServer } from '#runtime/ops-server.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { version } from '#runtime/version.ts';
import { Reaper } from './leadership.ts';
import { Outage } from '#runtime/outage.ts';

export interface ReaperDependencies extends ProcessKit {
  /** Metrics of a process that serves them itself; without them the reaper serves its own on HEALTH_PORT. */
  readonly metrics?: Metrics;
}

export interface RunningReaper {
  readonly isLeading: boolean;
  /** Where health and metrics are; undefined where somebody else serves them. */
  readonly port: number | undefined;
}

/** Starts the reaper, and registers its shutdown; waits for the database and its schema. */
export async function startReaper(
  config: ReaperConfig,
  dependencies: ReaperDependencies,
): Promise<RunningReaper> {
  const { logger, lifecycle } = dependencies;
  const metrics = dependencies.metrics ?? createMetrics({ service: 'reaper' });
  const applicationName = `broker-reaper-${config.instance}`;
  const directUrl = config.databaseDirectUrl ?? config.databaseUrl;
  const { statementTimeoutMs } = config;
  const database = createDatabase({
    url: config.databaseUrl,
    applicationName,
    poolMax: config.databasePoolMax,
    statementTimeoutMs,
  });
  const { db } = database;
  lifecycle.onShutdown('close', 'database', async () => database.close());
  const isAlone = dependencies.metrics === undefined;
  const port = isAlone ? await serveOps(config, dependencies, { db, metrics }) : undefined;

  const outage = new Outage(logger);
  await waitForSchema(db, {
    signal: lifecycle.signal,
    onWaiting: (reason, error) => logger.warn({ err: error }, reason),
  });
  keepHeartbeat(config, dependencies, { db, outage });
  const wakeups = openWakeups({ db, directUrl, applicationName }, { logger, metrics, outage });
  lifecycle.onShutdown('close', 'wake-ups', async () => wakeups.close());

  const candidate = new Candidate({
    directUrl,
    applicationName,
    holder: config.instance,
    statementTimeoutMs,
  });
  const reaper = new Reaper({
    candidate,
    term: { db, wakeups, metrics, lookBackMs: 2 * statementTimeoutMs },
    reapIntervalMs: config.reaperIntervalMs,
    logger,
    outage,
  });
  lifecycle.onShutdown('drain', 'duties', async () => reaper.stopDuties());
  lifecycle.onShutdown('release', 'leadership', async () => reaper.resign());
  logger.info({ health_port: port }, 'reaper runs');
  return {
    port,
    get isLeading() {
      return reaper.isLeading;
    },
  };
}

async function serveOps(
  config: ReaperConfig,
  { logger, lifecycle }: ProcessKit,
  { db, metrics }: { readonly db: Database; readonly metrics: Metrics },
): Promise<number> {
  const handlers = createOpsHandlers({
    service: 'reaper',
    isDraining: () => lifecycle.isStopping,
    metrics,
    logger,
    checks: [
      {
        name: 'database',
        check: async () => void (await sql`select from broker.leader`.execute(db)),
      },
    ],
  });
  const { host, healthPort: port } = config;
  const server = await startOpsServer({ host, port, handlers });
  lifecycle.onShutdown('close', 'health and metrics', async () => server.close());
  return server.port;
}

/** Shows the process in `broker.worker` for as long as it lives. */
function keepHeartbeat(
  config: ReaperConfig,
  { lifecycle }: ProcessKit,
  { db, outage }: { readonly db: Database; readonly outage: Outage },
): void {
  const { instance } = config;
  const info = { instance, service: 'reaper', version, host: hostname(), pid: process.pid };
  let isRegistered = false;
  const loop = startLoop({
    name: 'process heartbeat',
    intervalMs: 1000,
    onTick: async () => {
      const began = performance.now();
      await (isRegistered ? heartbeatProcess(db, info) : registerProcess(db, info));
      isRegistered = true;
      outage.worked('heartbeat', began);
    },
    onError: (error) => outage.failed('heartbeat', error),
  });
  lifecycle.onShutdown('close', 'process heartbeat', async () => {
    await loop.stop();
    // With the database away the row stays, and is forgotten after an hour.
    await unregisterProcess(db, instance).catch(() => undefined);
  });
}

function openWakeups(
  options: { readonly db: Database; readonly directUrl: string; readonly applicationName: string },
  parts: Pick<ProcessKit, 'logger'> & { readonly metrics: Metrics; readonly outage: Outage },
): Wakeups {
  const { logger, metrics, outage } = parts;
  return createWakeups({
    ...options,
    onSent: (count) => metrics.recordWakeUps('sent', count),
    onReceived: (count) => metrics.recordWakeUps('received', count),
    onProblem: (error) => {
      if (error instanceof NotificationsLost) logger.warn({ err: error }, 'polling instead');
      else outage.failed('wake-ups', error);
    },
    onRecovered: () => {
      metrics.recordDatabaseReconnect();
      outage.worked('wake-ups', performance.now());
    },
  });
}
