// A process for test/unit/lifecycle.test.ts. It does what its only argument says, and tells on
// standard output how far it is: log lines of the process and `step …` lines.
import { writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { type Lifecycle, shutdownPhases } from '#runtime/lifecycle.ts';
import { loadReaperConfig } from '#runtime/config.ts';
import { runProcess } from '#runtime/process.ts';

const scenario = process.argv[2] ?? '';

function say(step: string): void {
  writeSync(1, `step ${step}\n`);
}

const never = (): Promise<void> => new Promise(() => {});

// Keeps the process running as a service would.
async function startServer(lifecycle: Lifecycle): Promise<void> {
  const server = createServer().listen(0, '127.0.0.1');
  lifecycle.onShutdown('close', 'server', () => {
    say('close server');
    server.close();
  });
}

const scenarios: Record<string, (lifecycle: Lifecycle) => void | Promise<void>> = {
  async ordered(lifecycle) {
    // Registered backwards: the phases decide.
    for (const phase of shutdownPhases.toReversed()) {
      for (const service of ['api', 'reaper']) {
        lifecycle.onShutdown(phase, service, async () => {
          say(`${phase} ${service} begins`);
          await new Promise(setImmediate);
          say(`${phase} ${service} ends`);
        });
      }
    }
    lifecycle.signal.addEventListener('abort', () => say('aborted'));
  },
  failing(lifecycle) {
    lifecycle.onShutdown('drain', 'broken', () => {
      throw new Error('cannot drain');
    });
  },
  hanging(lifecycle) {
    lifecycle.onShutdown('drain', 'stuck', async (deadline) => {
      deadline.addEventListener('abort', () => say('deadline'));
      await never();
    });
  },
  kept(lifecycle) {
    // Somebody forgot a handle: the shutdown ends, the process would not.
    setInterval(() => {}, 1000);
    lifecycle.onShutdown('telemetry', 'last', () => say('telemetry'));
  },
  late(lifecycle) {
    lifecycle.onShutdown('close', 'first', () => {
      lifecycle.onShutdown('intake', 'late', () => say('late'));
    });
  },
  async starting() {
    say('starting');
    await never();
  },
  refused(lifecycle) {
    lifecycle.onShutdown('close', 'opened', () => say('close opened'));
    throw new Error('no such database');
  },
  uncaught() {
    setImmediate(() => {
      throw new Error('defect');
    });
  },
  unhandled() {
    void Promise.reject(new Error('defect'));
  },
  finished(lifecycle) {
    lifecycle.stop('all done');
  },
};

await runProcess(process.env, {
  service: 'fixture',
  loadConfig: loadReaperConfig,
  async start(_config, { logger, lifecycle }) {
    await startServer(lifecycle);
    await scenarios[scenario]?.(lifecycle);
    logger.info('started');
  },
});
