import { checkConnectionBudget } from '#db/connection-budget.ts';
import type { MigrateConfig } from '#runtime/config.ts';
import type { ProcessKit } from '#runtime/process.ts';

/**
 * Rejects where the database has fewer connections than the replicas of this deployment will hold: before anything is changed,
 * and not when the last replica finds none. Without API_REPLICAS, WORKER_REPLICAS and REAPER_REPLICAS there is nothing to check.
 */
export async function checkConnections(
  config: MigrateConfig,
  { logger }: Pick<ProcessKit, 'logger'>,
): Promise<void> {
  const replicas = {
    api: config.apiReplicas,
    worker: config.workerReplicas,
    reaper: config.reaperReplicas,
  };
  if (Object.values(replicas).every((count) => count === undefined)) return;
  const direct = config.databaseDirectUrl;
  const hasPooler = direct !== undefined && direct !== config.databaseUrl;
  const { needed, allowed, faults } = await checkConnectionBudget({
    databaseUrl: direct ?? config.databaseUrl,
    replicas,
    poolMax: hasPooler ? 0 : config.databasePoolMax,
    statementTimeoutMs: config.statementTimeoutMs,
  });
  if (faults.length === 0) {
    logger.info({ needed, allowed }, 'the connections of all replicas fit');
    return;
  }
  throw new Error(
    `the connections of all replicas do not fit:\n${faults.join('\n')}\n` +
      'Allow more (POSTGRES_MAX_CONNECTIONS, ALTER ROLE … CONNECTION LIMIT), or run with fewer replicas (API_REPLICAS, WORKER_REPLICAS, REAPER_REPLICAS) or smaller pools (DATABASE_POOL_MAX).',
  );
}
