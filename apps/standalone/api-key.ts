import { randomBytes } from 'node:crypto';
import { chmod, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { replaceFile } from './cluster.ts';

/** Where the development API key of a data directory is. */
export function apiKeyFile(dataDir: string): string {
  return join(dataDir, 'api-key');
}

/** The development API key of a data directory: made the first time, readable by its owner alone, the same ever after. */
export async function readOrMakeApiKey(dataDir: string): Promise<string> {
  const path = apiKeyFile(dataDir);
  const kept = (await readFile(path, 'utf8').catch(() => '')).trim();
  if (kept !== '') {
    await chmod(path, 0o600);
    return kept;
  }
  const key = `ebk_${randomBytes(32).toString('base64url')}`;
  await replaceFile(path, `${key}\n`);
  return key;
}
