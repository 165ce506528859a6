import { migrate } from '#db/migrate.ts';
import { loadMigrateConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

await runProcess(process.env, {
  service: 'migrate',
  loadConfig: loadMigrateConfig,
  async start(config, { logger, lifecycle }) {
    await migrate({
      databaseUrl: config.databaseDirectUrl ?? config.databaseUrl,
      onProgress: (line) => logger.info(line),
    });
    logger.info('the database is up to date');
    lifecycle.stop('done');
  },
});
