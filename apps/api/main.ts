import { loadApiConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';
import { startApi } from './start.ts';

await runProcess(process.env, {
  service: 'api',
  loadConfig: loadApiConfig,
  start: async (config, kit) => void (await startApi(config, kit)),
});
