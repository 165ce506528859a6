import { loadStandaloneConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';
import { startStandalone } from './start.ts';

await runProcess(process.env, {
  service: 'standalone',
  loadConfig: loadStandaloneConfig,
  start: startStandalone,
});
