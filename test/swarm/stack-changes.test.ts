/**
 * Goal: the stack comes up on three hosts by the project's own commands, and what an operator does to it (a new version with another schema, a version
 * that is broken, back, more and fewer replicas, new secrets, blue and green) fails no request and loses no event.
 *
 * Method: a Swarm of three hosts, a constant load through nginx on all of them with a ledger, one thing after the other; the commands are run as they are.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { selfSigned } from '#test/support/self-signed.ts';

import { type Lab, startLab } from './lab.ts';
import { Measured } from './measured.ts';
import { domain, Stack } from './stack.ts';

const engine = inject('docker');
const top = join(import.meta.dirname, '../..');
const minutes = (n: number): number => n * 60_000;

describe.skipIf(engine.missingHosts !== undefined)('changes of the stack on three hosts', () => {
  let lab: Lab;
  let stack: Stack;
  const measured = new Measured(() => stack);

  beforeAll(async () => {
    lab = await startLab({ managers: 1 });
    stack = await Stack.prepare(lab);
    const settle = await readFile(join(top, 'db/functions/settle.sql'), 'utf8');
    await lab.build('event-broker:v2', {
      from: 'event-broker:v1',
      files: {
        // a function that is in use all the time is another one
        '/app/db/functions/settle.sql': settle.replaceAll(
          '\nbegin\n',
          '\nbegin\n  perform pg_sleep(0);\n',
        ),
        '/app/db/migrations/0101_note.sql':
          'alter table broker.topic add column note_of_the_next_release text;\n',
      },
    });
    await lab.build('event-broker:unhealthy', {
      from: 'event-broker:v2',
      instructions: ['HEALTHCHECK --interval=1s --start-period=1s --retries=3 CMD ["false"]'],
    });
    await lab.build('event-broker:unmigratable', {
      from: 'event-broker:v2',
      files: { '/app/db/migrations/0102_broken.sql': 'select 1 / 0;\n' },
    });
    await lab.tag('event-broker:v2', 'event-broker:v3');
  }, minutes(10));
  afterAll(async () => {
    console.log(String(measured));
    await lab[Symbol.asyncDispose]();
  }, minutes(2));

  test('a deployment from nothing: PostgreSQL, roles, migration, replicas, nginx, and an event gets through', async () => {
    const said = await stack.command('deploy', '--yes');
    expect(said).toContain('Smoke test passed.');
    for (const n of lab.numbers) expect(said).toContain(`nginx of node${n} answers`);
    expect(await stack.command('status')).toContain('Everything runs as it should.');
    for (const service of ['api', 'worker', 'nginx']) {
      expect(await stack.spread(service), service).toEqual([1, 1, 1]);
    }
  });

  test('nothing happens: nothing fails', async () => {
    const report = await measured.under('nothing', async (load) => load.scenario.acceptMore(300));
    expect(report.failed).toEqual([]);
  });

  test('deploy again changes nothing, and says so', async () => {
    const said = await stack.command('deploy', '--dry-run');
    expect(said).toContain('nothing that shows');
  });

  test('a version that is to be migrated, one replica after the other; the spread is kept', async () => {
    await stack.configure({ BROKER_IMAGE: 'event-broker:v2' });
    const report = await measured.under('rolling update with a schema change', async () =>
      stack.command('deploy', '--yes'),
    );
    expect(report.failed).toEqual([]);
    for (const service of ['api', 'worker', 'reaper']) {
      expect(await stack.imageOf(service)).toBe('event-broker:v2');
    }
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
    expect(await stack.spread('worker')).toEqual([1, 1, 1]);
    const functions = await stack.sql(
      `select prosrc like '%pg_sleep(0)%' as is_new from pg_proc where proname = 'settle'`,
    );
    expect(functions).toEqual([{ is_new: true }]);
  });

  test('rollback: the version before works with the newer schema', async () => {
    const report = await measured.under('rollback', async () => stack.command('rollback', '--yes'));
    expect(report.failed).toEqual([]);
    expect(await stack.imageOf('api')).toBe('event-broker:v1');
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
  });

  test('a version that does not start goes back by itself, and the command says so', async () => {
    await stack.configure({ BROKER_IMAGE: 'event-broker:unhealthy' });
    const report = await measured.under('a broken version, rolled back by itself', async () => {
      const { code, stderr } = await stack.try('deploy', '--yes');
      expect(code).toBe(1);
      expect(stderr).toContain('the new version did not hold; Swarm went back to the one before');
    });
    expect(report.failed).toEqual([]);
    expect(await stack.imageOf('api')).toBe('event-broker:v1');
    const said = await stack.command('rollback', '--yes');
    expect(said).toContain('did not hold, and everything runs the version before it');
    expect(await readFile(stack.envFile, 'utf8')).toContain('\nBROKER_IMAGE=event-broker:v1\n');
  });

  test('a migration that fails stops the deployment before any replica is touched', async () => {
    await stack.configure({ BROKER_IMAGE: 'event-broker:unmigratable' });
    const before = await stack.imageOf('worker');
    const report = await measured.under('a migration that fails', async () => {
      const { code, stdout, stderr } = await stack.try('deploy', '--yes');
      expect(code).toBe(1);
      expect(`${stdout}${stderr}`).toContain('migration 0102_broken failed');
      expect(stderr).toContain('The replicas were not touched');
    });
    expect(report.failed).toEqual([]);
    expect(await stack.imageOf('worker')).toBe(before);
    await stack.configure({ BROKER_IMAGE: 'event-broker:v2' });
    await stack.command('deploy', '--yes');
  });

  test('more replicas, and fewer', async () => {
    const report = await measured.under('api to 5, to 2, to 3; worker to 1, to 3', async () => {
      await stack.command('scale', 'api=5', 'worker=1');
      expect((await stack.spread('api')).reduce((sum, n) => sum + n)).toBe(5);
      await stack.command('scale', 'api=2', 'worker=3');
      await stack.command('scale', 'api=3');
    });
    expect(report.failed).toEqual([]);
    expect(await readFile(stack.envFile, 'utf8')).toContain('\nAPI_REPLICAS=3\n');
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
  });

  test('more replicas than the database has connections for are refused, with the sum', async () => {
    const before = await readFile(stack.envFile, 'utf8');
    const { code, stdout, stderr } = await stack.try('scale', 'api=60');
    expect(code).toBe(1);
    expect(`${stdout}${stderr}`).toMatch(/connections/);
    expect(await readFile(stack.envFile, 'utf8')).toBe(before);
    expect((await stack.spread('api')).reduce((sum, n) => sum + n)).toBe(3);
  });

  test.each(['database_url_api', 'database_url_worker', 'database_url_owner'])(
    '%s is rotated: the role before can log in no more',
    async (name) => {
      const before = await stack.secret(name);
      const report = await measured.under(`rotate-secret ${name}`, async () =>
        stack.command('rotate-secret', '--yes', name),
      );
      expect(report.failed).toEqual([]);
      const now = await stack.secret(name);
      const user = (url: string): string => new URL(url).username;
      const logins = await stack.sql(
        `select rolname as name from pg_roles where rolcanlogin and rolname = any($1) order by 1`,
        [[user(before), user(now)]],
      );
      expect(logins).toEqual([{ name: user(now) }]);
    },
  );

  test('the first API key is rotated: the one before opens nothing', async () => {
    const before = await stack.secret('admin_api_key');
    const report = await measured.under('rotate-secret admin_api_key', async () =>
      stack.command('rotate-secret', '--yes', 'admin_api_key'),
    );
    expect(report.failed).toEqual([]);
    expect((await stack.send('GET', '/api/v1/topics')).status).toBe(200);
    expect((await stack.send('GET', '/api/v1/topics', { key: before })).status).toBe(401);
  });

  test('the key for signing secrets is rotated: pushes go on', async () => {
    const report = await measured.under('rotate-secret secret_encryption_key', async () =>
      stack.command('rotate-secret', '--yes', 'secret_encryption_key'),
    );
    expect(report.failed).toEqual([]);
    expect(report.findings.counts.pushes).toBeGreaterThan(0);
    const kept = await stack.sql('select distinct key_id from broker.push_secret');
    expect(kept).toHaveLength(1);
    expect(await stack.secret('secret_encryption_key')).not.toContain(',');
  });

  test('a rotation leaves nothing for the next deployment: it replaces no task', async () => {
    const tasks = async (): Promise<string> => {
      const running = ['service', 'ps', '--quiet', '--filter', 'desired-state=running'];
      const services = ['api', 'worker', 'reaper', 'nginx', 'postgres'].map(
        (each) => `broker_${each}`,
      );
      return lab.docker(1, ...running, ...services);
    };
    const before = await tasks();
    await stack.command('deploy', '--yes');
    expect(await tasks()).toBe(before);
    for (const service of ['api', 'worker']) {
      expect(await stack.spread(service), service).toEqual([1, 1, 1]);
    }
  });

  test(
    'blue and green: to the new one, back, and to it for good',
    async () => {
      const report = await measured.under(
        'blue-green: start, switch, back, switch, finish',
        async () => {
          await stack.command('blue-green', 'start', 'event-broker:v3');
          await stack.command('blue-green', 'switch', 'green');
          await stack.command('blue-green', 'switch', 'blue');
          await stack.command('blue-green', 'switch', 'green');
          const { code, stderr } = await stack.try('deploy', '--yes');
          expect(code).toBe(1);
          expect(stderr).toContain('a blue-green deployment is under way');
          await stack.command('blue-green', 'finish');
        },
      );
      expect(report.failed).toEqual([]);
      expect(await stack.imageOf('api')).toBe('event-broker:v3');
      expect(await stack.command('blue-green', 'show')).toContain('green: none');
      expect(await stack.spread('api')).toEqual([1, 1, 1]);
    },
    minutes(15),
  );

  test('another certificate: nginx is updated host by host, and clients take the next address', async () => {
    const { key, cert } = selfSigned({ names: [domain] });
    const trust = await stack.trust();
    await writeFile(join(stack.secretsDir, 'tls_fullchain'), cert, { flag: 'w' });
    await writeFile(join(stack.secretsDir, 'tls_privkey'), key, { flag: 'w' });
    const report = await measured.under(
      'rotate-secret tls: an update of nginx',
      async () => stack.command('rotate-secret', '--yes', 'tls'),
      { trust: { ...trust, ca: `${trust.ca}\n${cert}` } },
    );
    expect(report.failed).toEqual([]);
    expect((await stack.send('GET', '/api/v1/topics')).status).toBe(200);
  });
});
