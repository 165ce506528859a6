import { loadReaperConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

await runProcess(process.env, {
  service: 'reaper',
  loadConfig: loadReaperConfig,
  async start(config, kit) {
    const { startReaper } = await import('./start.ts');
    await startReaper(config, kit);
  },
});
