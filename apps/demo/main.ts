import { parseArgs } from 'node:util';
import { ConfigError, loadDemoConfig } from '#runtime/config.ts';
import { findBroker } from './broker.ts';
import { reportOf } from './report.ts';
import { runDemo } from './run.ts';

// npm run demo: real webhook bodies of GitHub through a broker, over HTTP, with consumers that fail on purpose.
// npm run demo -- --payloads 60: only so many of them. Ends with 1 when anything is lost or altered.

const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => interrupted.abort());
}
// as with `| head`
process.stdout.on('error', () => interrupted.abort());

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function main(): Promise<number> {
  const config = loadDemoConfig(process.env);
  const { values } = parseArgs({ options: { payloads: { type: 'string' } } });
  const payloadsMax = values.payloads === undefined ? undefined : Number(values.payloads);
  if (payloadsMax !== undefined && !(Number.isInteger(payloadsMax) && payloadsMax > 0)) {
    throw new ConfigError(['--payloads: is a number above 0']);
  }
  const { signal } = interrupted;
  await using broker = await findBroker({ config, env: process.env, signal, say });
  const startedAt = performance.now();
  const findings = await runDemo({ broker, payloadsMax, signal, say });
  say(`\n${reportOf(findings, (performance.now() - startedAt) / 1000)}`);
  return findings.faults.length === 0 ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  const isInterrupted = interrupted.signal.aborted;
  const message = isInterrupted
    ? 'interrupted'
    : error instanceof ConfigError
      ? error.message
      : error;
  process.stderr.write(
    `${message instanceof Error ? (message.stack ?? message.message) : String(message)}\n`,
  );
  process.exitCode = isInterrupted ? 130 : 1;
}
