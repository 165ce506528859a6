import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, globSync, openSync, readFileSync, rmdirSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { eventually } from './eventually.ts';

const run = promisify(execFile);

/** A Docker engine, and how its network is entered: ports that it publishes on 127.0.0.1 are only there. */
export interface DockerEngine {
  readonly host: string;
  /** Command line to put before another, so that this one runs in the engine's network; empty where that is the machine's. */
  readonly enter: readonly string[];
  /** HTTP proxy by which a build reaches the outside; `undefined` where it needs none. */
  readonly proxy: string | undefined;
  readonly description: string;
  stop(): Promise<void>;
}

const network = '10.87.213';

/** The engine of DOCKER_HOST or of this machine, if it answers. */
export async function findEngine(): Promise<DockerEngine | undefined> {
  // eslint-disable-next-line node/no-process-env
  const host = process.env['DOCKER_HOST'] ?? 'unix:///var/run/docker.sock';
  try {
    await run('docker', ['--host', host, 'info'], { timeout: 10_000 });
  } catch {
    return undefined;
  }
  return { host, enter: [], proxy: undefined, description: host, stop: async () => {} };
}

/**
 * A dockerd in network, mount, process and host-name namespaces of its own: one signal ends it with all of its containers,
 * and nothing of it (bridges, firewall rules, files) is left on the machine. Only for root.
 */
export async function startEngine(): Promise<DockerEngine> {
  const dir = await mkdtemp(join(tmpdir(), 'event-broker-docker-'));
  const name = dir.slice(-6);
  for (const each of ['etc', 'opt', 'var/lib']) {
    for (const layer of ['upper', 'scratch'])
      await mkdir(join(dir, layer, each), { recursive: true });
  }
  await mkdir(join(dir, 'data'));
  const boot = join(dir, 'boot.sh');
  await writeFile(boot, bootScript(dir, name), { mode: 0o755 });
  const log = openSync(join(dir, 'log'), 'a');
  // It dies with the process of the tests, however that dies.
  const child = spawn(
    'setpriv',
    `--pdeathsig KILL unshare --net --mount --propagation private --uts --pid --fork --kill-child=KILL --mount-proc ${boot}`.split(
      ' ',
    ),
    { stdio: ['ignore', log, log], detached: true },
  );
  let proxy: Server | undefined;
  const stop = async () => {
    proxy?.closeAllConnections();
    proxy?.close();
    await kill(child);
    await removeCgroups(name);
    await rm(dir, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
  };
  const host = `unix://${dir}/docker.sock`;
  try {
    const first = await firstProcess(child);
    await run('ip', `link add bd${name} type veth peer name eth0 netns ${first}`.split(' '));
    await run('ip', ['addr', 'add', `${network}.1/30`, 'dev', `bd${name}`]);
    await run('ip', ['link', 'set', `bd${name}`, 'up']);
    const enter = ['nsenter', `--net=/proc/${first}/ns/net`, '--'];
    await run(enter[0]!, [...enter.slice(1), ...'ip link set lo up'.split(' ')]);
    await run(enter[0]!, [...enter.slice(1), ...`ip addr add ${network}.2/30 dev eth0`.split(' ')]);
    await run(enter[0]!, [...enter.slice(1), ...'ip link set eth0 up'.split(' ')]);
    proxy = await startProxy(`${network}.1`);
    const answers = () => run('docker', ['--host', host, 'version'], { timeout: 5000 });
    await eventually(answers, { timeoutMs: 60_000, intervalMs: 200, what: 'dockerd' }).catch(
      (cause: unknown) => {
        throw new Error(`dockerd: ${readFileSync(join(dir, 'log'), 'utf8').slice(-2000)}`, {
          cause,
        });
      },
    );
    const { port } = proxy.address() as { port: number };
    return {
      host,
      enter,
      proxy: `http://${network}.1:${port}`,
      description: `dockerd of its own in ${dir}`,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

// A file system in memory over all of /run is what a boot gives: sockets and pid files of its own. The overlays catch what
// dockerd writes outside of its data root. The machine's own options of dockerd do not hold here.
function bootScript(dir: string, name: string): string {
  return `#!/bin/bash
hostname ${name}
mount -t tmpfs -o mode=755 tmpfs /run
for each in etc opt var/lib; do
  mount -t overlay overlay -o "lowerdir=/$each,upperdir=${dir}/upper/$each,workdir=${dir}/scratch/$each" "/$each"
done
rm -f /etc/docker/daemon.json /etc/docker/key.json
dockerd --host unix://${dir}/docker.sock --data-root ${dir}/data --exec-root /run/docker --pidfile /run/docker.pid \\
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /event-broker-${name} --log-level warn &
while kill -0 $! 2>/dev/null; do wait $!; done # the first process also reaps what others leave
`;
}

async function firstProcess(child: ChildProcess): Promise<string> {
  return eventually(
    () => {
      const [first] = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').split(
        ' ',
      );
      if (!first) throw new Error('no process yet');
      return first;
    },
    { what: 'the first process of the engine' },
  );
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await ended;
}

async function removeCgroups(name: string): Promise<void> {
  const found = globSync([
    `/sys/fs/cgroup/*/event-broker-${name}`,
    `/sys/fs/cgroup/event-broker-${name}`,
  ]);
  for (const top of found) {
    await eventually(() => {
      // deepest first
      for (const group of globSync(`${top}/**/`).toSorted((a, b) => b.length - a.length)) {
        rmdirSync(group);
      }
      if (existsSync(top)) rmdirSync(top);
    });
  }
}

/** A proxy for TLS only: whoever builds in the engine's network reaches what this machine reaches, without a rule in its firewall. */
async function startProxy(address: string): Promise<Server> {
  const proxy = createServer((_request, response) => response.writeHead(405).end());
  proxy.on('connect', ({ url = '' }, client, head) => {
    const { hostname, port } = new URL(`http://${url}`);
    const server = connect(Number(port || 443), hostname, () => {
      client.write('HTTP/1.1 200 Connected\r\n\r\n');
      server.write(head);
      server.pipe(client).pipe(server);
    });
    server.on('error', () => client.destroy());
    client.on('error', () => server.destroy());
    client.on('close', () => server.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    proxy.once('error', reject).listen(0, address, resolve);
  });
  return proxy;
}
