import { loadWorkerConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';
import { startWorker } from './start.ts';

await runProcess(process.env, {
  service: 'worker',
  loadConfig: loadWorkerConfig,
  start: async (config, kit) => void (await startWorker(config, kit)),
});
