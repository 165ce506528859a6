import { loadMigrateConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

await runProcess(process.env, {
  service: 'migrate',
  loadConfig: loadMigrateConfig,
  async start(config, kit) {
    const { startMigrate } = await import('./start.ts');
    await startMigrate(config, kit);
  },
});
