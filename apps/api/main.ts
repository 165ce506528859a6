import { loadApiConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

await runProcess(process.env, {
  service: 'api',
  loadConfig: loadApiConfig,
  async start(config, kit) {
    const { startApi } = await import('./start.ts');
    await startApi(config, kit);
  },
});
