import { relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import pg from 'pg';
import { expect, inject } from 'vitest';

export interface TestDatabase extends AsyncDisposable {
  readonly url: string;
  readonly name: string;
}

const OBJECT_IN_USE = '55006';
let count = 0;

/**
 * Makes a database from the migrated template, a matter of some 30 ms; disposing drops it, whoever is connected.
 * Its url is that of who may everything; processes get another (roles.ts). `name` makes it easier to find in `pg_stat_activity`; without it the test file gives the name.
 */
export async function cloneDatabase(name = testFileName()): Promise<TestDatabase> {
  const { adminUrl, prefix, template, roles } = inject('postgres');
  count += 1;
  // Each test file has a process of its own. PostgreSQL cuts names at 63 bytes, so the unique part comes first.
  const database =
    `${prefix}_${process.pid}_${count}_${name.replaceAll(/[^a-z0-9]+/gi, '_').toLowerCase()}`.slice(
      0,
      63,
    );
  const owner = roles === undefined ? '' : ' owner broker_owner';
  await createFromTemplate(adminUrl, database, `${template}${owner}`);
  const url = new URL(adminUrl);
  url.pathname = `/${database}`;
  return {
    url: url.href,
    name: database,
    async [Symbol.asyncDispose]() {
      await query(adminUrl, `drop database if exists ${database} with (force)`);
    },
  };
}

/** Runs one statement on a connection of its own and returns the rows. For many statements make a client. */
export async function query<Row extends pg.QueryResultRow = pg.QueryResultRow>(
  url: string,
  sql: string,
  parameters: readonly unknown[] = [],
): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url, application_name: 'broker-test' });
  // A connection that is cut tells so twice; the statement's own rejection is the one that counts.
  client.on('error', () => {});
  await client.connect();
  try {
    const { rows } = await client.query<Row>(sql, [...parameters]);
    return rows;
  } finally {
    await client.end();
  }
}

/** Nobody may connect to the template, but for a moment an autovacuum worker can be there all the same. */
async function createFromTemplate(
  adminUrl: string,
  database: string,
  template: string,
): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await query(adminUrl, `create database ${database} template ${template}`);
      return;
    } catch (error) {
      if (attempt === 20 || (error as pg.DatabaseError).code !== OBJECT_IN_USE) throw error;
      await delay(50);
    }
  }
}

function testFileName(): string {
  const { testPath = 'test' } = expect.getState();
  return relative(`${import.meta.dirname}/..`, testPath).replace(/\.test\.ts$/, '');
}
