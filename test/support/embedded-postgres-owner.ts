/**
 * A process that owns an embedded PostgreSQL, to be killed by tests. Takes the options as JSON in its first argument,
 * prints one line of JSON (what was started, or the error), and stops in order when its standard input ends.
 * With `exitAtOnce` it ends without stopping anything.
 */
import { once } from 'node:events';

import { startEmbeddedPostgres } from '../../apps/standalone/embedded-postgres.ts';
import type { EmbeddedPostgresOptions } from '../../apps/standalone/embedded-postgres.ts';

const options = JSON.parse(process.argv[2] ?? '{}') as EmbeddedPostgresOptions & {
  exitAtOnce?: boolean;
};

// Ctrl-C reaches the whole foreground group; the broker would drain now.
process.on('SIGINT', () => process.stdout.write('SIGINT\n'));

try {
  await using postgres = await startEmbeddedPostgres(options);
  const { url, superuserUrl, port, pid, strategy } = postgres;
  process.stdout.write(`${JSON.stringify({ url, superuserUrl, port, pid, strategy })}\n`);
  if (options.exitAtOnce) process.exit(3);
  await once(process.stdin.resume(), 'end');
} catch (error) {
  process.stdout.write(`${JSON.stringify({ error: (error as Error).message })}\n`);
}
