import { loadReaperConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';
import { startReaper } from './start.ts';

await runProcess(process.env, {
  service: 'reaper',
  loadConfig: loadReaperConfig,
  start: async (config, kit) => void (await startReaper(config, kit)),
});
