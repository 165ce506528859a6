import { readFile } from 'node:fs/promises';

import pg from 'pg';

/** Whose rights a process has: those of db/grants; a reaper and `migrate` have the owner's. */
export type Role = 'owner' | 'api' | 'worker' | 'monitor';

/** Members of the groups of deploy/postgres/roles.sql, who may log in on the server of the tests. */
export interface TestRoles {
  /** Begins their names: `<prefix>_api`. */
  readonly prefix: string;
  readonly password: string;
}

const kinds: readonly Role[] = ['owner', 'api', 'worker', 'monitor'];

/** The groups, and a member of each. `url`: as a superuser. Repeatable. */
export async function createTestRoles(url: string, roles: TestRoles): Promise<void> {
  const groups = await readFile(
    new URL('../../deploy/postgres/roles.sql', import.meta.url),
    'utf8',
  );
  await onServer(url, [
    groups,
    ...kinds.map(
      (kind) =>
        `create role ${roles.prefix}_${kind} login password '${roles.password}' in role broker_${kind}`,
    ),
    `alter role ${roles.prefix}_owner set role = broker_owner`,
  ]);
}

/** Removes the members. The groups stay: another run may count on them. */
export async function dropTestRoles(url: string, roles: TestRoles): Promise<void> {
  await onServer(
    url,
    kinds.map((kind) => `drop role if exists ${roles.prefix}_${kind}`),
  );
}

/** The same database as a role of less rights; the url itself where the server of the tests has no such roles. */
export async function asRole(role: Role, url: string): Promise<string> {
  const roles = await providedRoles();
  if (roles === undefined) return url;
  const changed = new URL(url);
  changed.username = `${roles.prefix}_${role}`;
  changed.password = roles.password;
  return changed.href;
}

/** Of the run that this is a test of; benchmarks use the same processes outside of any. */
export async function providedRoles(): Promise<TestRoles | undefined> {
  if (process.env['VITEST'] === undefined) return undefined;
  const { inject } = await import('vitest');
  return inject('postgres').roles;
}

async function onServer(url: string, statements: readonly string[]): Promise<void> {
  const client = new pg.Client({ connectionString: url, application_name: 'broker-test-setup' });
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
