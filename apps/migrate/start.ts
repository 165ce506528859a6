import { awaitDatabase } from '#db/await-database.ts';
import { migrate } from '#db/migrate.ts';
import type { MigrateConfig } from '#runtime/config.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { withSpan } from '#runtime/tracing.ts';
import { checkConnections } from './check-connections.ts';
import { resealConfigured } from './reseal.ts';

/** A stack starts its PostgreSQL, what makes the roles, and this at the same time. */
const awaitDatabaseMs = 60_000;

/** Waits for the database, brings it up to date and ends the process. */
export async function startMigrate(
  config: MigrateConfig,
  { logger, lifecycle }: ProcessKit,
): Promise<void> {
  const databaseUrl = config.databaseDirectUrl ?? config.databaseUrl;
  await awaitDatabase({
    databaseUrl,
    timeoutMs: awaitDatabaseMs,
    signal: lifecycle.signal,
    onWaiting: (reason) => logger.info(`waiting for the database: ${reason}`),
  });
  await checkConnections(config, { logger });
  await withSpan('migrate', { parent: 'root', isRare: true }, async (span) => {
    await migrate({
      databaseUrl,
      onProgress: (line) => {
        span.addEvent(line);
        logger.info(line);
      },
    });
  });
  logger.info('the database is up to date');
  await resealConfigured(config, { logger, lifecycle });
  lifecycle.stop('done');
}
