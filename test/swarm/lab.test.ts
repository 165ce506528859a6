/**
 * Goal: the hosts that the tests of the stack stand on are real ones as far as a Swarm can tell: they join, they talk to each other, they are cut
 * off and come back, they lose their power and boot again, and nothing of them is left on this machine.
 *
 * Method: a manager and two workers (where managers come and go, elections take up to a minute), and a stack of two small services with a task of each on every host: one is asked from outside, and asks all tasks of the other where they run. Beside them a PostgreSQL on host 3.
 */
import { execFile } from 'node:child_process';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { eventually } from '#test/support/eventually.ts';

import { type Lab, startLab } from './lab.ts';
import { stackSql } from './stack-sql.ts';
import { usageOf } from './usage.ts';

const run = promisify(execFile);
const engine = inject('docker');
const names = ['node1', 'node2', 'node3'];

const web = `import { createServer } from 'node:http';
import { resolve4 } from 'node:dns/promises';
const ask = (address) => fetch('http://' + address + ':3000/', { signal: AbortSignal.timeout(1000) }).then((answer) => answer.text());
createServer(async (request, response) => {
  if (request.url !== '/all') return response.end(process.env.HERE);
  const answers = await Promise.all((await resolve4('tasks.inner')).map((address) => ask(address).catch(() => 'nobody')));
  response.end(answers.sort().join(' '));
}).listen(3000);`;

/** Only `inner` is ever updated: a global service on ports of its hosts can be stuck in a rollback, waiting for a port of its own. */
const stackOf = (innerImage: string): string => `x-web: &web
  command: [node, --input-type=module, --eval, ${JSON.stringify(web)}]
  init: true
  environment: { HERE: '{{.Node.Hostname}}' }
  healthcheck:
    test: [CMD, node, --eval, "fetch('http://127.0.0.1:3000/').catch(() => process.exit(1))"]
    interval: 1s
  networks: [inside]
  deploy:
    mode: global
    endpoint_mode: dnsrr
    resources: { limits: { memory: 128M } }
    update_config: { failure_action: rollback, monitor: 2s }
services:
  outer:
    <<: *web
    image: ${engine.image}
    ports: [{ target: 3000, published: 8080, mode: host }]
  inner:
    <<: *web
    image: ${innerImage}
  database:
    image: ${engine.images.postgres}
    environment: { POSTGRES_USER: postgres, POSTGRES_PASSWORD: for-this-test, POSTGRES_DB: broker }
    healthcheck: { test: [CMD, pg_isready, --quiet, --host, 127.0.0.1], interval: 1s, start_period: 60s }
    networks: [inside]
    deploy:
      endpoint_mode: dnsrr
      placement: { constraints: [node.hostname == node3] }
networks:
  inside: {}
`;

describe.skipIf(engine.missingHosts !== undefined)('the lab', () => {
  let lab: Lab;

  beforeAll(async () => {
    lab = await timed('three hosts, a Swarm of one manager and two workers', async () =>
      startLab({ managers: 1 }),
    );
    await timed('images to all of them', async () =>
      lab.loadImages([engine.image, engine.images.postgres]),
    );
  });
  afterAll(async () => lab[Symbol.asyncDispose]());

  async function deploy(image: string): Promise<void> {
    const file = join(lab.dir, 'stack.yml');
    await writeFile(file, stackOf(image));
    const options = ['--detach=true', '--resolve-image', 'never', '--compose-file', file];
    await lab.docker(await lab.manager(), 'stack', 'deploy', ...options, 'small');
  }

  async function ask(n: number, path: string): Promise<string> {
    const url = `http://${lab.address(n)}:8080${path}`;
    const answer = await fetch(url, { signal: AbortSignal.timeout(3000) });
    return answer.text();
  }

  /** Waits until the outer task of a host reaches inner tasks on these hosts, and no others. */
  async function sees(n: number, wanted: readonly string[]): Promise<void> {
    const look = async (): Promise<void> => expect(await ask(n, '/all')).toBe(wanted.join(' '));
    await eventually(look, { timeoutMs: 120_000, intervalMs: 200, what: `node${n} sees them` });
  }

  test('three nodes are ready, the first is the manager', async () => {
    expect(await ranksOf(lab)).toEqual(['node1 Ready Leader', 'node2 Ready ', 'node3 Ready ']);
    expect([await lab.manager(), await lab.leader()]).toEqual([1, 1]);
  });

  test('a service on an overlay network answers on every host, and reaches its other tasks', async () => {
    await timed('a stack of seven tasks', async () => {
      await deploy(engine.image);
      await lab.converged('small');
    });
    for (const n of lab.numbers) {
      expect(await ask(n, '/')).toBe(`node${n}`);
      await sees(n, names);
    }
  });

  test('the database of a stack can be asked from here, with values of any kind', async () => {
    const sql = stackSql(lab, 'small_database');
    const rows = await sql(
      `select $1 as text, ($2::text[])[2] as member, n from generate_series(1, 2) n`,
      ["it's $2", ['a', `"b", 'c'`]],
    );
    expect(rows).toEqual([1, 2].map((n) => ({ text: "it's $2", member: `"b", 'c'`, n })));
    expect(await sql('select 1 where false')).toEqual([]);
    await expect(sql('select nothing')).rejects.toThrow('column "nothing" does not exist');
  });

  test('what limits say holds: a control group on this machine has it', async () => {
    const groups = globSync([
      `/sys/fs/cgroup/memory/event-broker-${lab.name}/host*/*/memory.limit_in_bytes`,
      `/sys/fs/cgroup/event-broker-${lab.name}/host*/*/memory.max`,
    ]);
    const limits = groups
      .map((file) => Number(readFileSync(file, 'utf8')))
      .filter((each) => each < 2 ** 40);
    expect(limits).toEqual(Array.from({ length: 6 }, () => 128 * 2 ** 20));
  });

  test('a changed image is on every host, and one that is not healthy is rolled back', async () => {
    await timed('a changed image', async () => {
      await lab.build('event-broker:lab-changed', {
        from: engine.image,
        files: { '/app/changed.txt': 'changed\n' },
      });
    });
    await timed('an update', async () => {
      await deploy('event-broker:lab-changed');
      await eventually(async () => expect((await updated()).update).toBe('completed'), {
        timeoutMs: 120_000,
        intervalMs: 250,
      });
    });
    for (const n of lab.numbers) {
      const [container = ''] = await lab.containersOf('small_inner', n);
      expect(await lab.docker(n, 'exec', container, 'cat', '/app/changed.txt')).toBe('changed');
    }
    await lab.build('event-broker:lab-broken', {
      from: engine.image,
      instructions: ['ENTRYPOINT ["false"]'],
    });
    await timed('an update that is rolled back', async () => {
      await deploy('event-broker:lab-broken');
      await eventually(async () => expect((await updated()).update).toBe('rollback_completed'), {
        timeoutMs: 120_000,
        intervalMs: 250,
      });
    });
    expect((await updated()).image).toBe('event-broker:lab-changed');
    for (const n of lab.numbers) await sees(n, names);
  });

  async function updated() {
    const services = await lab.converged('small', 60_000);
    const inner = services.find(({ name }) => name === 'small_inner');
    if (inner === undefined) throw new Error('no inner service');
    return inner;
  }

  test('a host that is cut off is down for the others, runs on, and comes back', async () => {
    await lab.cut(3);
    await expect(ask(3, '/')).rejects.toThrow(/fetch failed|aborted/);
    await timed('down after a cut', async () => lab.untilNode(3, 'Down'));
    expect(await lab.containersOf('small_inner', 3)).toHaveLength(1);
    expect(await stackSql(lab, 'small_database')('select 1 as one')).toEqual([{ one: 1 }]);
    await sees(1, ['node1', 'node2']);
    await lab.heal(3);
    await timed('ready after the heal', async () => lab.untilNode(3, 'Ready'));
    expect(await ask(3, '/')).toBe('node3');
    await sees(1, names);
  });

  test('a host that is cut off from the others alone still answers this machine', async () => {
    await lab.cut(2, [1, 3]);
    await timed('down after a cut from the others', async () => {
      const look = async (): Promise<void> => {
        const listed = await lab.tryDocker(
          1,
          'node',
          'ls',
          '--format',
          '{{.Hostname}} {{.Status}}',
        );
        expect(listed.stdout).toContain('node2 Down');
      };
      await eventually(look, { timeoutMs: 120_000, intervalMs: 200 });
    });
    expect(await ask(2, '/')).toBe('node2');
    await lab.heal(2);
    await eventually(async () => lab.untilNode(2, 'Ready'), { timeoutMs: 120_000 });
    await sees(2, names);
  });

  test('a host without power is silent, and boots with what it had', async () => {
    await lab.kill(3);
    await expect(ask(3, '/')).rejects.toThrow(/fetch failed|aborted/);
    await expect(lab.docker(3, 'version')).rejects.toThrow('host 3');
    await timed('down after a power cut', async () => lab.untilNode(3, 'Down'));
    await timed('boot', async () => lab.start(3));
    await timed('ready after the boot', async () => lab.untilNode(3, 'Ready'));
    await timed('its task after that', async () => sees(3, names));
  });

  test('a host that is shut down in order stops its containers, and boots again', async () => {
    await timed('shutdown', async () => lab.stop(2));
    await timed('down after a shutdown', async () => lab.untilNode(2, 'Down'));
    await sees(1, ['node1', 'node3']);
    await lab.start(2);
    await lab.untilNode(2, 'Ready');
    await sees(2, names);
  });

  test('nothing is left on this machine when it goes', async () => {
    console.log(`in use: ${await usageOf(lab)}`);
    const { name, dir } = lab;
    expect(await leftOvers(name, dir)).not.toEqual([]);
    await timed('everything gone', async () => lab[Symbol.asyncDispose]());
    expect(await leftOvers(name, dir)).toEqual([]);
  });
});

test.skipIf(engine.missingHosts !== undefined)(
  'of three managers one may lose its power, also the leader',
  async () => {
    await using lab = await timed('three hosts, a Swarm of three managers', async () => startLab());
    expect((await ranksOf(lab)).toSorted()).toEqual([
      'node1 Ready Leader',
      'node2 Ready Reachable',
      'node3 Ready Reachable',
    ]);
    await lab.kill(1);
    await timed('another leader', async () => {
      const look = async (): Promise<void> => expect([2, 3]).toContain(await lab.leader());
      await eventually(look, { timeoutMs: 120_000, intervalMs: 200 });
    });
    expect([2, 3]).toContain(await lab.manager());
    await lab.start(1);
    await timed('ready after the boot', async () => lab.untilNode(1, 'Ready'));
  },
);

/** Name, state and rank of each node. */
async function ranksOf(lab: Lab): Promise<string[]> {
  const nodes = await lab.nodes();
  return nodes
    .map(({ Hostname, Status, ManagerStatus }) => `${Hostname} ${Status} ${ManagerStatus}`)
    .toSorted();
}

/** What of a lab can be found on this machine: network devices, mounts, control groups, processes, files. */
async function leftOvers(name: string, dir: string): Promise<string[]> {
  const { stdout: devices } = await run('ip', ['-brief', 'link']);
  const mounts = readFileSync('/proc/mounts', 'utf8');
  const { stdout: processes } = await run('ps', ['-eo', 'args']);
  const namespaces = existsSync('/run/netns') ? globSync('/run/netns/*') : [];
  return [
    ...devices.split('\n').filter((line) => line.startsWith(`eb${name}`)),
    ...mounts.split('\n').filter((line) => line.includes(dir)),
    ...globSync([`/sys/fs/cgroup/*/event-broker-${name}*`, `/sys/fs/cgroup/event-broker-${name}*`]),
    ...processes.split('\n').filter((line) => line.includes(dir)),
    ...namespaces,
    ...(existsSync(dir) ? [dir] : []),
  ];
}

async function timed<Result>(what: string, work: () => Promise<Result>): Promise<Result> {
  const startedAt = performance.now();
  const result = await work();
  console.log(`${what}: ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  return result;
}
