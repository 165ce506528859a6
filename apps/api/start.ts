import { hostname } from 'node:os';
import type { FastifyInstance } from 'fastify';
import { sql } from 'kysely';
import { createDatabase, type Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { findLogLevel } from '#db/log-levels.ts';
import { heartbeatProcess, registerProcess, unregisterProcess } from '#db/processes.ts';
import { waitForSchema } from '#db/schema-version.ts';
import { createWakeups, NotificationsLost, type Wakeups } from '#db/wakeups.ts';
import type { ApiConfig } from '#runtime/config.ts';
import { followLogLevel } from '#runtime/log-level.ts';
import { startLoop } from '#runtime/loop.ts';
import type { Metrics } from '#runtime/metrics.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { createProcessMetrics } from '#runtime/process-metrics.ts';
import { version } from '#runtime/version.ts';
import { type Admission, createAdmission } from './publish/admission.ts';
import { buildApp } from './app.ts';
import { seedConfiguredKey } from './auth.ts';
import { Connections } from './connections.ts';
import type { AppDependencies } from './dependencies.ts';
import { Directory } from './directory.ts';
import { createPublisher } from './publish/publisher.ts';
import { createReceiver } from './receive/receiver.ts';
import { createSettler } from './receive/settler.ts';

export interface ApiKit extends ProcessKit {
  /** Metrics that a process with several services shares; an API alone makes its own. */
  readonly metrics?: Metrics;
  /** Nobody else seeds a key in this database: the configured one holds, and the one before ends at once (false). */
  readonly ownsDatabase?: boolean;
}

export interface RunningApi {
  readonly port: number;
  /** Where it can be called on this machine. */
  readonly url: string;
}

/**
 * Starts the API and registers its shutdown. It listens at once, for the sake of the health checks, and answers everything
 * else with 503 until the database is there and migrated; resolves then. A database that is incompatible ends it.
 */
export async function startApi(config: ApiConfig, kit: ApiKit): Promise<RunningApi> {
  const { logger, lifecycle } = kit;
  const own = { service: 'api', namesMax: config.metricsNamesMax };
  const metrics = kit.metrics ?? createProcessMetrics(kit, own);
  const database = createDatabase({
    url: config.databaseUrl,
    applicationName: `broker-api-${config.instance}`,
    poolMax: config.databasePoolMax,
    statementTimeoutMs: config.statementTimeoutMs,
    onQuery: metrics.recordDatabaseQuery,
  });
  metrics.watchPool(() => database.poolState());
  lifecycle.onShutdown('close', 'database', async () => database.close());
  const wakeups = openWakeups(config, { db: database.db, logger, metrics });
  lifecycle.onShutdown('close', 'wake-ups', async () => wakeups.close());

  const admission = new LateAdmission();
  lifecycle.onShutdown('close', 'admission', async () => admission.stop());
  const deps = assemble(config, { ...kit, db: database.db, metrics, wakeups, admission });
  lifecycle.onShutdown('close', 'directory', () => deps.directory[Symbol.dispose]());
  let isStarted = false;
  const app = await buildApp(deps, {
    isStarted: () => isStarted,
    checks: [
      {
        name: 'schema',
        check: () => {
          if (!isStarted) throw new Error('the database is not ready for this release yet');
        },
      },
      {
        name: 'database',
        check: async () => void (await sql`select from broker.leader`.execute(database.db)),
      },
    ],
  });
  registerDrain(app, deps, kit);
  if (config.nodeEnv === 'production' && config.secretEncryptionKey === undefined) {
    logger.warn(
      'SECRET_ENCRYPTION_KEY is not set: who may read broker.push_secret can sign in the name of this broker',
    );
  }
  const running = await listen(app, config);
  await prepareDatabase(config, database.db, kit);
  // Told to stop meanwhile: what would begin now, nobody would end.
  lifecycle.signal.throwIfAborted();
  const levels = followLogLevel({
    logger,
    level: config.logLevel,
    changes: wakeups,
    read: (service) => findLogLevel(database.db, service),
  });
  lifecycle.onShutdown('close', 'log level', async () => levels.stop());
  admission.begin(createAdmission({ db: database.db, logger }));
  isStarted = true;
  logger.info({ url: running.url }, 'api listens');
  return running;
}

/** Admission that begins once there are tables to look at. */
class LateAdmission implements Admission {
  #begun: Admission | undefined;

  begin(admission: Admission): void {
    this.#begun = admission;
  }

  fullBacklog(topicId: number): ReturnType<Admission['fullBacklog']> {
    return this.#begun?.fullBacklog(topicId);
  }

  async refresh(): Promise<void> {
    await this.#begun?.refresh();
  }

  async stop(): Promise<void> {
    await this.#begun?.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

type Parts = ProcessKit & Pick<AppDependencies, 'db' | 'metrics' | 'wakeups' | 'admission'>;

function assemble(config: ApiConfig, parts: Parts): AppDependencies {
  const { db, metrics, wakeups, logger, lifecycle, admission } = parts;
  const settler = createSettler({ db, wakeups, metrics });
  return {
    config,
    db,
    logger,
    metrics,
    wakeups,
    settler,
    admission,
    directory: new Directory(db, wakeups),
    publisher: createPublisher({
      db,
      wakeups,
      metrics,
      limits: {
        bufferEventsMax: config.publishBufferEventsMax,
        bufferBytesMax: config.publishBufferBytesMax,
      },
    }),
    receiver: createReceiver({
      db,
      wakeups,
      settler,
      metrics,
      limits: { waitingMax: config.receiveWaitingMax, bytesMax: config.receiveBytesMax },
      statementTimeoutMs: config.statementTimeoutMs,
    }),
    isDraining: () => lifecycle.isStopping,
  };
}

function openWakeups(
  config: ApiConfig,
  { db, logger, metrics }: Pick<Parts, 'db' | 'logger' | 'metrics'>,
): Wakeups {
  return createWakeups({
    db,
    directUrl: config.databaseDirectUrl ?? config.databaseUrl,
    applicationName: `broker-api-${config.instance}`,
    onSent: (count) => metrics.recordWakeUps('sent', count),
    onReceived: (count) => metrics.recordWakeUps('received', count),
    onEcho: (latencyMs) => metrics.recordWakeupHeard(latencyMs / 1000),
    onProblem: (error) => {
      const message =
        error instanceof NotificationsLost ? 'polling instead' : 'no wake-ups from the database';
      logger.warn({ err: error }, message);
    },
    onRecovered: () => {
      metrics.recordDatabaseReconnect();
      logger.info('wake-ups are heard again');
    },
  });
}

/** Listening ends first; long polls are answered; what was taken in is finished; then connections are cut. */
function registerDrain(app: FastifyInstance, deps: AppDependencies, { lifecycle }: ApiKit): void {
  const connections = new Connections(app.server);
  lifecycle.onShutdown('intake', 'http', (deadline) => connections.sayFarewell(deadline));
  lifecycle.onShutdown('intake', 'receive', async () => deps.receiver.drain());
  lifecycle.onShutdown('drain', 'requests', async (deadline) => {
    await connections.drain(deadline);
    await app.close();
  });
  lifecycle.onShutdown('drain', 'publishes', async (deadline) => deps.publisher.drain(deadline));
  lifecycle.onShutdown('flush', 'settles', async (deadline) => deps.settler.drain(deadline));
}

async function listen(app: FastifyInstance, { host, port }: ApiConfig): Promise<RunningApi> {
  try {
    await app.listen({ host, port });
  } catch (error) {
    const isTaken = error instanceof Error && 'code' in error && error.code === 'EADDRINUSE';
    const where = `port ${port} on ${host}`;
    throw new Error(
      `PORT: ${isTaken ? `${where} is already in use` : `cannot listen on ${where}`}`,
      {
        cause: error,
      },
    );
  }
  const address = app.server.address();
  const bound = typeof address === 'object' && address !== null ? address.port : port;
  const shown = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
  return { port: bound, url: `http://${shown.includes(':') ? `[${shown}]` : shown}:${bound}` };
}

/** Waits for the schema, seeds the configured key and shows this process; again when the database goes meanwhile. */
async function prepareDatabase(config: ApiConfig, db: Database, kit: ApiKit): Promise<void> {
  const { logger, lifecycle } = kit;
  const info = {
    instance: config.instance,
    service: 'api',
    version,
    host: hostname(),
    pid: process.pid,
  };
  for (let isDone = false; !isDone;) {
    await waitForSchema(db, {
      signal: lifecycle.signal,
      onWaiting: (reason, error) => logger.warn({ err: error }, reason),
    });
    try {
      await seedKey(config, db, kit);
      await registerProcess(db, info);
      isDone = true;
    } catch (error) {
      if (faultOf(error) === 'defect') throw error;
    }
  }
  const heartbeat = startLoop({
    name: 'process heartbeat',
    intervalMs: 1000,
    onTick: async () => heartbeatProcess(db, info),
    logger,
  });
  lifecycle.onShutdown('close', 'process heartbeat', async () => {
    await heartbeat.stop();
    // with the database away the row stays, and is forgotten after an hour
    await unregisterProcess(db, config.instance).catch(() => undefined);
  });
}

async function seedKey(config: ApiConfig, db: Database, kit: ApiKit): Promise<void> {
  const { logger, ownsDatabase = false } = kit;
  if (config.adminApiKey === undefined) return;
  const options = ownsDatabase ? { reinstates: true, overlapMs: 0 } : {};
  const result = await seedConfiguredKey(db, config.adminApiKey, options);
  if (result.status === 'superseded') {
    logger.warn(
      'ADMIN_API_KEY: another key has taken the place of this one, or it was deleted; it was not seeded again',
    );
  } else if (result.status === 'seeded' && result.before !== undefined) {
    const { id, expires_at } = result.before;
    logger.info(
      { api_key_id: String(id), expires_at },
      'ADMIN_API_KEY: a new key was seeded; the one before goes on until it expires, or is deleted',
    );
  }
}
