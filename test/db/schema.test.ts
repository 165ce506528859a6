import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { cloneDatabase } from '../support/database.ts';

const top = join(import.meta.dirname, '../..');

// `npm run generate` runs this test with --update, and so writes the file.
test('db/schema.ts is what the migrated database says', async () => {
  await using database = await cloneDatabase();
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [
      join(top, 'node_modules/kysely-codegen/dist/cli/bin.js'),
      `--url=${database.url}`,
      '--dialect=postgres',
      '--default-schema=broker',
      '--include-pattern=broker.*',
      // what operators look at and no verb does
      '--exclude-pattern=broker.{backlog,dead_letters,in_flight,oldest_waiting,workers}',
      '--log-level=silent',
      '--type-mapping={"timestamptz":"string","int8":"string","json":"string"}',
      '--print',
    ],
    { cwd: top },
  );
  await expect(`${stdout.trim()}\n`).toMatchFileSnapshot('../../db/schema.ts');
});
