import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { Cluster, freePort } from '#test/support/cluster.ts';
import { cloneDatabase, query } from '#test/support/database.ts';

const run = promisify(execFile);
const main = join(import.meta.dirname, '../../apps/smoke/main.ts');

/** The process to its end, as the image runs it: the key out of a file. */
async function smoke(brokerUrl: string, key: string): Promise<{ code: number; output: string }> {
  const dir = await mkdtemp(join(tmpdir(), 'event-broker-smoke-'));
  try {
    await writeFile(join(dir, 'key'), key);
    const env = { PATH: '', BROKER_URL: brokerUrl, API_KEY_FILE: join(dir, 'key') };
    const { stdout, stderr } = await run(process.execPath, [main], { env });
    return { code: 0, output: stdout + stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, output: stdout + stderr };
  } finally {
    await rm(dir, { recursive: true });
  }
}

test('an event gets through a broker that works, and nothing of it stays', async () => {
  await using database = await cloneDatabase();
  await using cluster = await Cluster.start({ databaseUrl: database.url });
  const { code, output } = await smoke(cluster.apis[0]!.url, cluster.adminKey);
  expect(output).toContain('received and acked it');
  expect(code).toBe(0);
  const left = await query(
    database.url,
    `select name from broker.topic where state = 'active' union all select name from broker.subscription where state = 'active'`,
  );
  expect(left).toEqual([]);
});

test('it says which request failed: a key that is not known, an API that is not there', async () => {
  await using database = await cloneDatabase();
  await using cluster = await Cluster.start({ databaseUrl: database.url });
  const refused = await smoke(cluster.apis[0]!.url, 'a-key-that-nobody-knows');
  expect(refused.code).toBe(1);
  expect(refused.output).toMatch(/smoke cannot start: PUT http\S+ 401 /);
  expect(refused.output).not.toContain('a-key-that-nobody-knows');
  const port = await freePort();
  const absent = await smoke(`http://127.0.0.1:${port}`, cluster.adminKey);
  expect(absent.code).toBe(1);
  expect(absent.output).toContain('ECONNREFUSED');
});
