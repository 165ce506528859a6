/**
 * Goal: the stack works with a PostgreSQL that runs elsewhere, by one variable, and the commands know what is not theirs then.
 *
 * Method: a Swarm of one host; PostgreSQL runs beside it, on this machine, with TLS and the roles of deploy/postgres; the four addresses are written
 * into the secrets by hand, as deploy/postgres/README.md says. A constant load with a ledger.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { query } from '#test/support/database.ts';
import { selfSigned } from '#test/support/self-signed.ts';
import { findPostgresBuilds, StackPostgres } from '#test/support/stack-postgres.ts';

import { type Lab, startLab } from './lab.ts';
import { Measured } from './measured.ts';
import { Stack } from './stack.ts';

const engine = inject('docker');
const minutes = (n: number): number => n * 60_000;
const [build] = findPostgresBuilds();

describe.skipIf(engine.missingHosts !== undefined || build === undefined)(
  'a stack with PostgreSQL elsewhere',
  () => {
    let lab: Lab;
    let stack: Stack;
    let postgres: StackPostgres;
    const measured = new Measured(() => stack);

    beforeAll(async () => {
      lab = await startLab({ hosts: 1 });
      postgres = await StackPostgres.open(build!);
      const host = lab.machineAddress;
      const { key, cert } = selfSigned({ names: ['localhost', host] });
      await postgres.secret('postgres_key', key);
      await postgres.secret('postgres_cert', cert);
      await postgres.secret('postgres_ca', cert);
      await postgres.start({ POSTGRES_ALLOW: '0.0.0.0/0' });
      stack = await Stack.prepare(lab);
      await lab.docker(1, 'node', 'update', '--label-rm', 'database', 'node1');
      await stack.configure({ POSTGRES_REPLICAS: '0' });
      const tls = 'sslmode=verify-full&sslrootcert=/run/secrets/postgres_ca';
      for (const kind of ['owner', 'api', 'worker', 'monitor'] as const) {
        const url = postgres.url(kind, { host, query: tls });
        await writeFile(join(stack.secretsDir, `database_url_${kind}`), url);
      }
      await writeFile(join(stack.secretsDir, 'postgres_ca'), cert);
    }, minutes(10));
    afterAll(async () => {
      console.log(String(measured));
      await lab[Symbol.asyncDispose]();
      await postgres[Symbol.asyncDispose]();
    }, minutes(2));

    test('deploy: no PostgreSQL of its own, and an event gets through', async () => {
      const said = await stack.command('deploy', '--yes');
      expect(said).toContain('Smoke test passed.');
      expect(said).not.toContain('Roles of the database');
      expect(await stack.spread('postgres')).toEqual([0]);
      const status = await stack.command('status');
      expect(status).toContain('PostgreSQL is elsewhere');
      expect(status).toContain('Everything runs as it should.');
    });

    test('a role may do only what is its own there too, over TLS', async () => {
      const sessions = await postgres.asSuperuser(
        `select distinct usename || ' ' || ssl from pg_stat_activity join pg_stat_ssl using (pid)
          where usename like 'broker%' order by 1`,
        'broker',
      );
      expect(sessions.split('\n')).toEqual([
        'broker_api_1 true',
        'broker_owner_1 true',
        'broker_worker_1 true',
      ]);
    });

    test('a load loses nothing', async () => {
      const report = await measured.under(
        'PostgreSQL elsewhere',
        async (load) => load.scenario.acceptMore(300),
        { sql: (text, parameters) => query(postgres.url('owner'), text, parameters) },
      );
      expect(report.failed).toEqual([]);
    });

    test('what is not of the stack is not rotated, and the secret stays as it was', async () => {
      for (const name of ['database_url_api', 'postgres_certificate']) {
        const before = await readFile(join(stack.secretsDir, 'database_url_api'), 'utf8');
        const { code, stderr } = await stack.try('rotate-secret', '--yes', name);
        expect(code).toBe(1);
        expect(stderr).toContain('PostgreSQL is not of this stack');
        expect(await readFile(join(stack.secretsDir, 'database_url_api'), 'utf8')).toBe(before);
      }
    });

    test('more replicas than it has connections for are refused, with the sum', async () => {
      const { code, stdout, stderr } = await stack.try('scale', 'api=90');
      expect(code).toBe(1);
      expect(`${stdout}${stderr}`).toMatch(/connections/);
    });
  },
);
