import { resolve } from 'node:path';
import { migrate } from '#db/migrate.ts';
import { createDatabase } from '#db/client.ts';
import { waitForSchema } from '#db/schema-version.ts';
import type { StandaloneConfig } from '#runtime/config.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { createProcessMetrics } from '#runtime/process-metrics.ts';
import { withSpan } from '#runtime/tracing.ts';
import { startApi } from '../api/start.ts';
import { startReaper } from '../reaper/start.ts';
import { startWorker } from '../worker/start.ts';
import { apiKeyFile, readOrMakeApiKey } from './api-key.ts';
import { renderBanner } from './banner.ts';
import { startEmbeddedPostgres } from './embedded-postgres.ts';

const loopback = ['127.0.0.0/8', '::1/128'];

interface Provided {
  readonly databaseUrl: string;
  readonly adminApiKey: string | undefined;
  /** Of an embedded database. */
  readonly dataDir: string | undefined;
}

/**
 * `npm start`: a database of its own unless DATABASE_URL is set, its tables, the API, a worker and a reaper in one process;
 * then says on standard output how to use them. What is started is stopped in the reverse order, the database last.
 */
export async function startStandalone(config: StandaloneConfig, kit: ProcessKit): Promise<void> {
  const { lifecycle, logger } = kit;
  const provided = await provideDatabase(config, kit);
  // Told to stop meanwhile: what is there by now is stopped already.
  lifecycle.signal.throwIfAborted();
  const { databaseUrl, adminApiKey, dataDir } = provided;
  const migrated = withSpan('migrate', { parent: 'root', isRare: true }, async () =>
    migrate({
      databaseUrl: config.databaseDirectUrl ?? databaseUrl,
      // On a new database each function is a line, and nobody waits for them.
      onProgress: (line) => logger[line.startsWith('migrated') ? 'info' : 'debug'](line),
    }),
  );
  // Told to stop meanwhile: the database is not stopped under what works on it.
  lifecycle.onShutdown('close', 'migrations', async () => migrated.catch(() => undefined));
  await migrated;
  lifecycle.signal.throwIfAborted();
  const own = { service: 'standalone', namesMax: config.metricsNamesMax };
  const metrics = createProcessMetrics(kit, own);
  // On a laptop the endpoints are on the laptop; a database that others share may be on a host with neighbours.
  const opensLoopback = dataDir !== undefined && config.allowPrivateTargets.length === 0;
  const allowPrivateTargets = opensLoopback ? loopback : config.allowPrivateTargets;
  const common = { ...config, databaseUrl, adminApiKey, allowPrivateTargets };
  const api = await startApi(common, { ...kit, metrics, ownsDatabase: dataDir !== undefined });
  const named = (service: string): typeof common => ({
    ...common,
    instance: `${config.instance}-${service}`.slice(-45),
  });
  await startWorker(named('worker'), { ...kit, metrics });
  await startReaper(named('reaper'), { ...kit, metrics });
  process.stdout.write(
    renderBanner({
      url: api.url,
      apiKey: adminApiKey,
      apiKeyFile:
        dataDir === undefined || config.adminApiKey !== undefined ? undefined : apiKeyFile(dataDir),
      databaseUrl,
      dataDir,
      privateTargets: allowPrivateTargets,
    }),
  );
}

async function provideDatabase(config: StandaloneConfig, kit: ProcessKit): Promise<Provided> {
  if (config.databaseUrl !== undefined) {
    await waitForDatabase(config.databaseUrl, config, kit);
    return { databaseUrl: config.databaseUrl, adminApiKey: config.adminApiKey, dataDir: undefined };
  }
  const { lifecycle, logger } = kit;
  const dataDir = resolve(config.dataDir);
  logger.info({ data_dir: dataDir }, 'starting the database');
  const postgres = await startEmbeddedPostgres({ dataDir, onLog: (line) => logger.info(line) });
  lifecycle.onShutdown('close', 'PostgreSQL', async () => postgres.stop());
  void postgres.exited.then(({ code, signal }) => {
    if (lifecycle.isStopping) return;
    const how = `PostgreSQL has ended (code ${code}, signal ${signal}); its log is ${dataDir}/postgres.log`;
    lifecycle.fail(new Error(how), 'the database is gone');
  });
  const adminApiKey = config.adminApiKey ?? (await readOrMakeApiKey(dataDir));
  return { databaseUrl: postgres.url, adminApiKey, dataDir };
}

/** A database that is not there yet is waited for; what is in it is the business of the migrations. */
async function waitForDatabase(
  url: string,
  config: StandaloneConfig,
  kit: ProcessKit,
): Promise<void> {
  const { logger, lifecycle } = kit;
  const database = createDatabase({
    url,
    applicationName: `broker-start-${config.instance}`,
    poolMax: 1,
    statementTimeoutMs: config.statementTimeoutMs,
  });
  const answered = new AbortController();
  const signal = AbortSignal.any([lifecycle.signal, answered.signal]);
  try {
    await waitForSchema(database.db, {
      signal,
      onWaiting: (reason, error) => {
        if (error === undefined) answered.abort();
        else logger.warn({ err: error }, reason);
      },
    });
  } catch (error) {
    if (!answered.signal.aborted) throw error;
  } finally {
    await database.close();
  }
}
