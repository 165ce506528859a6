import { loadSmokeConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';
import { smoke } from './smoke.ts';

// One event goes in and comes out of a broker that runs: deploy/swarm/smoke starts it on the network of the API.
await runProcess(process.env, {
  service: 'smoke',
  loadConfig: loadSmokeConfig,
  async start({ brokerUrl, apiKey }, { logger, lifecycle }) {
    await smoke({
      brokerUrl,
      apiKey,
      signal: AbortSignal.timeout(60_000),
      say: (line) => logger.info(line),
    });
    lifecycle.stop('done');
  },
});
