/**
 * Goal: docker-compose.prod.yml over docker-compose.yml is the production set-up on one host, as users of Compose type it: secrets from files, PostgreSQL over
 * TLS with a role for each process, TLS in front, nothing of the laptop left.
 *
 * Method: the commands of deploy/README.md with the real Compose on a real engine, a copy of .env.example, and secrets that make-secrets made.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { Docker, endOf } from '#test/support/docker.ts';
import { eventually } from '#test/support/eventually.ts';

const engine = inject('docker');
const top = join(import.meta.dirname, '../..');
const files = ['docker-compose.yml', 'docker-compose.prod.yml'].flatMap((file) => [
  '--file',
  join(top, file),
]);

interface Container {
  readonly Service: string;
  readonly State: string;
  readonly Health: string;
  readonly ExitCode: number;
  readonly Name: string;
}

describe.skipIf(engine.missing !== undefined || engine.compose.length === 0)('on one host', () => {
  const docker = new Docker(engine);
  const project = `${docker.prefix}-prod`;
  let dir: string;
  const path = '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin';

  async function compose(...args: string[]): Promise<string> {
    const env = {
      PATH: path,
      HOME: '/nonexistent',
      DOCKER_HOST: engine.host,
      ENV_FILE: join(dir, '.env.prod'),
    };
    const options = ['--env-file', join(dir, '.env.prod'), ...files, '--project-name', project];
    const { code, stdout, stderr } = await endOf([...engine.compose, ...options, ...args], { env });
    if (code !== 0) throw new Error(`compose ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  }

  const containers = async (): Promise<Container[]> =>
    (await compose('ps', '--all', '--format', 'json'))
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as Container);

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'event-broker-prod-'));
    const settings = {
      BROKER_IMAGE: engine.image,
      POSTGRES_IMAGE: engine.images.postgres,
      NGINX_IMAGE: engine.images.nginx,
      SECRETS_DIR: join(dir, 'secrets'),
      API_REPLICAS: '2',
      WORKER_REPLICAS: '1',
      REAPER_REPLICAS: '1',
      ADMIN_ALLOW: 'all',
      POSTGRES_MEMORY: '1G',
    };
    const lines = Object.entries(settings).map(([name, value]) => `${name}=${value}\n`);
    const example = await readFile(join(top, '.env.example'), 'utf8');
    await writeFile(join(dir, '.env.prod'), `${example}${lines.join('')}`);
    const made = await endOf([join(top, 'deploy/swarm/make-secrets'), 'broker.test'], {
      env: { PATH: path, HOME: dir, ENV_FILE: join(dir, '.env.prod') },
    });
    if (made.code !== 0) throw new Error(`make-secrets: ${made.stderr}`);
    await compose('up', '--detach', '--no-build');
  }, 300_000);

  afterAll(async () => {
    await compose('down', '--volumes', '--timeout', '40');
    await docker[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  }, 180_000);

  test('every service runs, healthy; roles and migrate are done', async () => {
    await eventually(
      async () => {
        const counted: Record<string, number> = {};
        for (const { Service, State, Health, ExitCode } of await containers()) {
          const state = [Service, State, Health === '' ? `exit ${ExitCode}` : Health].join(' ');
          counted[state] = (counted[state] ?? 0) + 1;
        }
        expect(counted).toEqual({
          'postgres running healthy': 1,
          'roles exited exit 0': 1,
          'migrate exited exit 0': 1,
          'api running healthy': 2,
          'worker running healthy': 1,
          'reaper running healthy': 1,
          'nginx running healthy': 1,
        });
      },
      { timeoutMs: 120_000, intervalMs: 500 },
    );
  }, 150_000);

  test('an event goes in over TLS and comes out, and plain HTTP is sent to TLS', async () => {
    const [api] = (await containers()).filter(({ Service }) => Service === 'api');
    const key = join(dir, 'secrets/admin_api_key');
    // inside the network of the API, as deploy/swarm/smoke does it
    const smoke = ['run', '--rm', '--network', `${project}_edge`, '--volume', `${key}:/run/key:ro`];
    const env = ['--env', 'BROKER_URL=http://api:3000', '--env', 'API_KEY_FILE=/run/key'];
    const said = await docker.run(...smoke, ...env, engine.image, 'node', 'apps/smoke/main.ts');
    expect(said).toContain('received and acked it');
    const [tls, plain] = await Promise.all(
      ['https://127.0.0.1/api/health', 'http://127.0.0.1/api/health'].map(async (url) => {
        const options = ['--insecure', '--silent', '--output', '/dev/null'];
        const format = ['--write-out', '%{http_code} %{redirect_url}'];
        return (await endOf([...engine.enter, 'curl', ...options, ...format, url])).stdout.trim();
      }),
    );
    expect(tls).toBe('200');
    expect(plain).toBe('308 https://127.0.0.1/api/health');
    expect(api).toBeDefined();
  });

  test('no secret of the laptop, and none in the environment; nothing is published but nginx', async () => {
    const published: string[] = [];
    for (const { Name, Service } of await containers()) {
      const { Env } = await docker.inspect<{ Env: string[] }>(Name, '.Config');
      expect(Env.filter((each) => /development-only|postgres:\/\/|PASSWORD=/.test(each))).toEqual(
        [],
      );
      const ports = await docker.inspect<Record<string, { HostPort: string }[] | null> | null>(
        Name,
        '.HostConfig.PortBindings',
      );
      for (const binding of Object.values(ports ?? {}).flat())
        if (binding) published.push(`${Service} ${binding.HostPort}`);
    }
    expect(published.toSorted()).toEqual(['nginx 443', 'nginx 80']);
  });

  test('PostgreSQL: a role for each process, all over TLS', async () => {
    const [postgres] = (await containers()).filter(({ Service }) => Service === 'postgres');
    const query = `select distinct usename || ' ' || split_part(application_name, '-', 2) || ' ' || ssl from pg_stat_activity join pg_stat_ssl using (pid)
      where usename like 'broker%' order by 1`;
    const psql = ['psql', '--no-psqlrc', '--tuples-only', '--no-align', '--username', 'postgres'];
    const rows = await docker.run('exec', postgres!.Name, ...psql, '--command', query);
    expect(rows.split('\n')).toEqual([
      'broker_api_1 api true',
      'broker_owner_1 reaper true',
      'broker_worker_1 worker true',
    ]);
  });
});
