import { awaitDatabase } from '#db/await-database.ts';
import { migrate } from '#db/migrate.ts';
import { loadMigrateConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';
import { checkConnections } from './check-connections.ts';
import { resealConfigured } from './reseal.ts';

/** A stack starts its PostgreSQL, what makes the roles, and this at the same time. */
const awaitDatabaseMs = 60_000;

await runProcess(process.env, {
  service: 'migrate',
  loadConfig: loadMigrateConfig,
  async start(config, { logger, lifecycle }) {
    const databaseUrl = config.databaseDirectUrl ?? config.databaseUrl;
    await awaitDatabase({
      databaseUrl,
      timeoutMs: awaitDatabaseMs,
      signal: lifecycle.signal,
      onWaiting: (reason) => logger.info(`waiting for the database: ${reason}`),
    });
    await checkConnections(config, { logger });
    await migrate({
      databaseUrl,
      onProgress: (line) => logger.info(line),
    });
    logger.info('the database is up to date');
    await resealConfigured(config, { logger, lifecycle });
    lifecycle.stop('done');
  },
});
