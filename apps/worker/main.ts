import { loadWorkerConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

await runProcess(process.env, {
  service: 'worker',
  loadConfig: loadWorkerConfig,
  async start(config, kit) {
    const { startWorker } = await import('./start.ts');
    await startWorker(config, kit);
  },
});
