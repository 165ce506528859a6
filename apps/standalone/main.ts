import { loadStandaloneConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

await runProcess(process.env, {
  service: 'standalone',
  loadConfig: loadStandaloneConfig,
  async start(config, kit) {
    const { startStandalone } = await import('./start.ts');
    await startStandalone(config, kit);
  },
});
