/**
 * Goal: docker-compose.yml brings up a broker that works, in its order, and takes all of it away again.
 *
 * Method: the file as it is, by the real Compose on a real engine; an event goes in through nginx and comes out at a container that receives pushes.
 */
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { Docker, endOf } from '#test/support/docker.ts';
import { eventually } from '#test/support/eventually.ts';

const engine = inject('docker');
const file = join(import.meta.dirname, '../../docker-compose.yml');
const url = 'http://127.0.0.1:18080';
const sink = `import { createServer } from 'node:http';
createServer(async (request, response) => {
  const chunks = await request.toArray();
  console.log(Buffer.concat(chunks).toString());
  response.writeHead(204).end();
}).listen(9000);`;

interface Container {
  readonly Service: string;
  readonly State: string;
  readonly Health: string;
  readonly ExitCode: number;
  readonly Name: string;
}

describe.skipIf(engine.missing !== undefined || engine.compose.length === 0)('Compose', () => {
  const docker = new Docker(engine);
  const project = `${docker.prefix}-stack`;

  async function compose(...args: string[]): Promise<string> {
    const env = {
      PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
      HOME: '/nonexistent',
      DOCKER_HOST: engine.host,
      BROKER_IMAGE: engine.image,
      POSTGRES_IMAGE: engine.images.postgres,
      NGINX_IMAGE: engine.images.nginx,
      HTTP_PORT: '18080',
    };
    const command = [...engine.compose, '--file', file, '--project-name', project, ...args];
    const { code, stdout, stderr } = await endOf(command, { env });
    if (code !== 0) throw new Error(`compose ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  }

  const containers = async (): Promise<Container[]> =>
    (await compose('ps', '--all', '--format', 'json'))
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as Container);

  const call = async (method: string, path: string, body: unknown) => {
    const answer = await docker.fetch(`${url}${path}`, {
      method,
      headers: {
        authorization: 'Bearer development-only-admin-key',
        'content-type': 'application/json',
      },
      body: JSON.stringify(body),
    });
    expect(answer.status, answer.text).toBeLessThan(300);
    return answer;
  };

  beforeAll(async () => {
    const startedAt = performance.now();
    await compose('up', '--detach', '--no-build', '--wait', '--wait-timeout', '240').catch(
      async (error: unknown) => {
        // --wait counts a one-shot that is done as a failure in some versions: what matters is asked below.
        console.log(
          String(error),
          await compose('ps', '--all'),
          await compose('logs', '--tail', '20'),
        );
      },
    );
    console.log(`up in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  }, 300_000);

  afterAll(async () => {
    await compose('down', '--volumes', '--timeout', '35');
    await docker[Symbol.asyncDispose]();
    const left = await docker.run('ps', '--all', '--quiet', '--filter', `name=${project}`);
    const volumes = await docker.run('volume', 'ls', '--quiet', '--filter', `name=${project}`);
    const networks = await docker.run('network', 'ls', '--quiet', '--filter', `name=${project}`);
    if (`${left}${volumes}${networks}` !== '')
      throw new Error(`left over: ${left} ${volumes} ${networks}`);
  }, 180_000);

  test('what watches is there with its profile, on 127.0.0.1 only, and its images are pinned', async () => {
    const text = await compose('--profile', 'observability', 'config', '--format', 'json');
    const { services } = JSON.parse(text) as {
      services: Record<string, { image: string; ports?: { host_ip?: string }[] }>;
    };
    for (const name of ['prometheus', 'alertmanager', 'grafana', 'jaeger']) {
      const service = services[name];
      expect(service?.image, name).toMatch(/^[a-z/]+:v?\d+\.\d+\.\d+$/);
      expect(service?.ports?.map((port) => port.host_ip)).toEqual(['127.0.0.1']);
      console.log(`${name}: not started, ${service?.image} cannot be had here`);
    }
    // without it Prometheus would take every probe for one that failed
    expect(services['blackbox-exporter']?.image).toMatch(/:v\d+\.\d+\.\d+$/);
    expect(services['blackbox-exporter']?.ports).toBeUndefined();
  });

  test('every service runs with its replicas, healthy; migrate is done', async () => {
    await eventually(
      async () => {
        const counted: Record<string, number> = {};
        for (const { Service, State, Health, ExitCode } of await containers()) {
          const state = [Service, State, Health === '' ? `exit ${ExitCode}` : Health].join(' ');
          counted[state] = (counted[state] ?? 0) + 1;
        }
        expect(counted).toEqual({
          'postgres running healthy': 1,
          'migrate exited exit 0': 1,
          'api running healthy': 2,
          'worker running healthy': 2,
          'reaper running healthy': 2,
          'nginx running healthy': 1,
        });
      },
      { timeoutMs: 90_000, intervalMs: 500 },
    );
  }, 120_000);

  test('an event goes in through nginx, and comes out at a push endpoint of the network', async () => {
    const name = `${docker.prefix}-sink`;
    await docker.run(
      'run',
      '--detach',
      '--name',
      name,
      '--network',
      `${project}_app`,
      '--network-alias',
      'sink',
      engine.image,
      'node',
      '--input-type=module',
      '--eval',
      sink,
    );
    await eventually(async () =>
      expect((await docker.fetch(`${url}/api/health`)).status).toBe(200),
    );
    await call('PUT', '/api/v1/topics/orders', {});
    await call('PUT', '/api/v1/subscriptions/mailer', {
      topic: 'orders',
      type: 'push',
      push: { endpoint: 'http://sink:9000/hook' },
    });
    const marks = Array.from({ length: 20 }, (_, index) => `mark-${docker.prefix}-${index}`);
    for (const mark of marks)
      await call('POST', '/api/v1/topics/orders/events', {
        type: 'order.created',
        source: '/shop',
        data: { mark },
      });
    await eventually(
      async () => {
        const logs = await docker.run('logs', name);
        expect(marks.filter((mark) => !logs.includes(`"${mark}"`))).toEqual([]);
      },
      { timeoutMs: 30_000, intervalMs: 200 },
    );
  }, 120_000);

  test('nothing is published but nginx, and that on 127.0.0.1', async () => {
    const published: string[] = [];
    for (const { Name, Service } of await containers()) {
      const ports = await docker.inspect<Record<
        string,
        { HostIp: string; HostPort: string }[] | null
      > | null>(Name, '.HostConfig.PortBindings');
      for (const binding of Object.values(ports ?? {}).flat())
        if (binding) published.push(`${Service} ${binding.HostIp}:${binding.HostPort}`);
    }
    expect(published).toEqual(['nginx 127.0.0.1:18080']);
  });

  test('each container of ours is confined, logs within bounds, and is given longer than its drain', async () => {
    const ours = (await containers()).filter(({ Service }) =>
      /^(api|worker|reaper)$/.test(Service),
    );
    expect(ours).toHaveLength(6);
    for (const { Name } of ours) {
      const host = await docker.inspect<Record<string, unknown>>(Name, '.HostConfig');
      expect(host).toMatchObject({
        ReadonlyRootfs: true,
        CapDrop: ['ALL'],
        SecurityOpt: ['no-new-privileges:true'],
        Init: true,
        LogConfig: { Type: 'json-file', Config: { 'max-size': '10m', 'max-file': '3' } },
      });
      const config = await docker.inspect<{ StopTimeout: number; Env: string[] }>(Name, '.Config');
      const drain = config.Env.find((each) => each.startsWith('SHUTDOWN_TIMEOUT_MS='))!.split(
        '=',
      )[1];
      expect(config.StopTimeout * 1000).toBeGreaterThan(Number(drain));
    }
  });

  test('stopped, every process of ours drained: exit code 0', async () => {
    await compose('stop', 'api', 'worker', 'reaper');
    const ours = (await containers()).filter(({ Service }) =>
      /^(api|worker|reaper)$/.test(Service),
    );
    expect(ours.map(({ Service, ExitCode }) => [Service, ExitCode])).toEqual(
      ours.map(({ Service }) => [Service, 0]),
    );
    expect(ours).toHaveLength(6);
  }, 120_000);
});
