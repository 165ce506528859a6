import { hostname } from 'node:os';
import { sql } from 'kysely';
import { createDatabase, type Database } from '#db/client.ts';
import { Candidate } from '#db/leader.ts';
import { findLogLevel } from '#db/log-levels.ts';
import { heartbeatProcess, registerProcess, unregisterProcess } from '#db/processes.ts';
import { waitForSchema } from '#db/schema-version.ts';
import { createWakeups, type Wakeups } from '#db/wakeups.ts';
import type { ReaperConfig } from '#runtime/config.ts';
import { followLogLevel } from '#runtime/log-level.ts';
import { startLoop } from '#runtime/loop.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { serveOps } from '#runtime/ops-server.ts';
import { Outage } from '#runtime/outage.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { createProcessMetrics } from '#runtime/process-metrics.ts';
import { version } from '#runtime/version.ts';
import { observeWakeups } from '#runtime/wakeup-observer.ts';
import { Reaper } from './leadership.ts';

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
  const own = { service: 'reaper', namesMax: config.metricsNamesMax };
  const metrics = dependencies.metrics ?? createProcessMetrics(dependencies, own);
  const applicationName = `broker-reaper-${config.instance}`;
  const directUrl = config.databaseDirectUrl ?? config.databaseUrl;
  const { statementTimeoutMs } = config;
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
  const isAlone = dependencies.metrics === undefined;
  const check = async (): Promise<void> => void (await sql`select from broker.leader`.execute(db));
  const ops = { service: 'reaper', metrics, checks: [{ name: 'database', check }] };
  const port = isAlone ? await serveOps(config, dependencies, ops) : undefined;

  const outage = new Outage(logger);
  await waitForSchema(db, {
    signal: lifecycle.signal,
    onWaiting: (reason, error) => logger.warn({ err: error }, reason),
  });
  keepHeartbeat(config, dependencies, { db, outage });
  const wakeups = createWakeups({
    db,
    directUrl,
    applicationName,
    ...observeWakeups({ logger, metrics, outage }),
  });
  lifecycle.onShutdown('close', 'wake-ups', async () => wakeups.close());
  followLevel(config, dependencies, { db, wakeups });

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

function followLevel(
  { logLevel: level }: ReaperConfig,
  { logger, lifecycle }: ProcessKit,
  { db, wakeups }: { readonly db: Database; readonly wakeups: Wakeups },
): void {
  const read = (service: string): ReturnType<typeof findLogLevel> => findLogLevel(db, service);
  const levels = followLogLevel({ logger, level, changes: wakeups, read });
  lifecycle.onShutdown('close', 'log level', async () => levels.stop());
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
