// The health check of a container, for an image without a shell tool that speaks HTTP. Exit code 0 is healthy.
//
// Ready once, then live: a container counts as healthy from the first time that its process is ready, and from then on as long as
// the process answers at all. Asked for readiness all the time, each replica would be restarted whenever the database is away, which helps nobody;
// who sends requests (nginx, a load balancer) looks at readiness by itself.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';

/** A container's own memory file system: it is there, and can be written to, with a read-only root too. */
const marker = '/dev/shm/ready-once';

const defaultPorts: Readonly<Record<string, string>> = {
  api: process.env['PORT'] ?? '3000',
  worker: process.env['HEALTH_PORT'] ?? '9401',
  reaper: process.env['HEALTH_PORT'] ?? '9402',
};

/** The process that the container runs, by the command line of its first process (which may be an init with ours behind it). */
function processName(): string | undefined {
  return /\bapps\/([a-z]+)\/main\.ts/.exec(readFileSync('/proc/1/cmdline', 'utf8'))?.[1];
}

async function check(port: string): Promise<void> {
  const wasReady = existsSync(marker);
  const url = `http://127.0.0.1:${port}/api/health${wasReady ? '/live' : ''}`;
  const answer = await fetch(url, { signal: AbortSignal.timeout(4000) });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${url} answered ${answer.status}: ${text}`);
  if (!wasReady) writeFileSync(marker, '');
}

const port = defaultPorts[processName() ?? ''];
try {
  // What has no port, as migrate, is well as long as it runs.
  if (port !== undefined) await check(port);
} catch (error) {
  // shown by docker inspect
  process.stderr.write(`unhealthy: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
