import { expect, test } from 'vitest';
import { loadApiConfig } from '#runtime/config.ts';
import { Lifecycle } from '#runtime/lifecycle.ts';
import { createLogger } from '#runtime/logger.ts';
import { startApi } from '../../apps/api/start.ts';
import { cloneDatabase } from '../support/database.ts';

/** Starts the API as its process does, ends it, and returns what it logged. */
async function linesOf(url: string, env: Readonly<Record<string, string>>): Promise<string[]> {
  const lines: string[] = [];
  const logger = createLogger({
    service: 'api',
    instance: 'test',
    level: 'info',
    destination: { write: (line) => void lines.push(line) },
  });
  const config = loadApiConfig({ DATABASE_URL: url, HOST: '127.0.0.1', PORT: '0', ...env });
  const lifecycle = new Lifecycle({ logger, shutdownTimeoutMs: 10_000 });
  await startApi(config, { logger, lifecycle });
  lifecycle.stop('the test has seen it start');
  await lifecycle.finished;
  return lines;
}

test('only production is warned once that secrets are kept as they are', async () => {
  await using database = await cloneDatabase();
  const warnings = async (env: Readonly<Record<string, string>>): Promise<number> =>
    (await linesOf(database.url, env)).filter((line) => line.includes('SECRET_ENCRYPTION_KEY'))
      .length;
  expect(await warnings({ NODE_ENV: 'production' })).toBe(1);
  expect(await warnings({ NODE_ENV: 'development' })).toBe(0);
  const key = Buffer.alloc(32, 3).toString('base64');
  expect(await warnings({ NODE_ENV: 'production', SECRET_ENCRYPTION_KEY: key })).toBe(0);
});
