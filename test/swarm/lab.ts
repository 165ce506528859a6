import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { promisify } from 'node:util';

import { DockerHost, makeHostsDir, nameOf, removeHostsDir } from '#test/support/docker-host.ts';
import { Wire } from '#test/support/docker-wire.ts';
import { endOf, type Ended } from '#test/support/docker.ts';
import { eventually } from '#test/support/eventually.ts';

import { archiveOf, type ChangedImage, makeContext } from './lab-images.ts';
import { notSettled, type ServiceState, servicesFrom } from './services.ts';

const run = promisify(execFile);

export interface LabOptions {
  /** How many (3). */
  readonly hosts?: number;
  /** How many of them, the first ones, are managers (all). */
  readonly managers?: number;
}

/** One line of `docker node ls`. */
export interface LabNode {
  readonly Hostname: string;
  readonly Status: string;
  readonly Availability: string;
  /** `Leader`, `Reachable`, `Unreachable`, or empty for a worker. */
  readonly ManagerStatus: string;
}

/** Makes hosts, and a Swarm of them: `node1` to `nodeN`. Host 1 is its first leader. */
export async function startLab(options: LabOptions = {}): Promise<Lab> {
  const { hosts: count = 3 } = options;
  const { managers = count } = options;
  const resources = new AsyncDisposableStack();
  try {
    const dir = await makeHostsDir();
    resources.defer(async () => removeHostsDir(dir));
    const wire = resources.adopt(await Wire.open(nameOf(dir)), async (each) => each.close());
    const hosts = Array.from({ length: count }, (_, index) => {
      return new DockerHost({ dir, wire, number: index + 1 });
    });
    resources.defer(async () => void (await Promise.all(hosts.map((host) => host.kill()))));
    await Promise.all(hosts.map((host) => host.start()));
    const lab = new Lab({ dir, wire, hosts, resources });
    await lab.formSwarm(managers);
    return lab;
  } catch (error) {
    await resources.disposeAsync();
    throw error;
  }
}

interface Parts {
  readonly dir: string;
  readonly wire: Wire;
  readonly hosts: readonly DockerHost[];
  readonly resources: AsyncDisposableStack;
}

/**
 * A Docker Swarm of several hosts on this machine, without virtual machines and without a registry: images are loaded, a changed one needs a
 * new tag, and a stack is deployed with `--resolve-image never`. Disposing leaves nothing behind.
 */
export class Lab implements AsyncDisposable {
  /** What everything of it is named after: network device, folder, control groups. */
  readonly name: string;
  readonly dir: string;
  readonly #wire: Wire;
  readonly #hosts: readonly DockerHost[];
  readonly #resources: AsyncDisposableStack;

  constructor({ dir, wire, hosts, resources }: Parts) {
    this.name = nameOf(dir);
    this.dir = dir;
    this.#wire = wire;
    this.#hosts = hosts;
    this.#resources = resources;
  }

  /** The numbers of all hosts. */
  get numbers(): readonly number[] {
    return this.#hosts.map(({ number }) => number);
  }

  /** Of this machine on the hosts' wire: where clients come from, and where a receiver of pushes can listen. */
  get machineAddress(): string {
    return this.#wire.address;
  }

  /** Of a host, for this machine and the other hosts. */
  address(n: number): string {
    return this.host(n).address;
  }

  host(n: number): DockerHost {
    const host = this.#hosts[n - 1];
    if (host === undefined) throw new Error(`no host ${n}: there are ${this.#hosts.length}`);
    return host;
  }

  /** Standard output of Docker's client against a host; rejects when it fails. It works also while the host is cut off. */
  async docker(n: number, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.tryDocker(n, ...args);
    if (code !== 0)
      throw new Error(`host ${n}: docker ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout.trim();
  }

  async tryDocker(n: number, ...args: string[]): Promise<Ended> {
    return endOf(['docker', '--host', this.host(n).endpoint, ...args]);
  }

  /** The first host that answers as a manager of a quorum. */
  async manager(): Promise<number> {
    const asked = this.#running().map(async (n) => {
      const command = ['docker', '--host', this.host(n).endpoint, 'node', 'ls', '--quiet'];
      const { code, stderr } = await endOf(command, { timeoutMs: 10_000 });
      if (code !== 0) throw new Error(`host ${n}: ${stderr}`);
      return n;
    });
    return Promise.any(asked);
  }

  /** The host that leads the managers now. */
  async leader(): Promise<number> {
    const leader = (await this.nodes()).find(({ ManagerStatus }) => ManagerStatus === 'Leader');
    if (leader === undefined) throw new Error('nobody leads');
    return Number(leader.Hostname.replace('node', ''));
  }

  /** What a manager says of all nodes. */
  async nodes(): Promise<LabNode[]> {
    const text = await this.docker(await this.manager(), 'node', 'ls', '--format', '{{json .}}');
    return text.split('\n').map((line) => JSON.parse(line) as LabNode);
  }

  /** Waits until a manager says so of a host. */
  async untilNode(n: number, status: 'Ready' | 'Down', timeoutMs = 120_000): Promise<void> {
    const look = async (): Promise<void> => {
      const node = (await this.nodes()).find(({ Hostname }) => Hostname === `node${n}`);
      if (node?.Status !== status) throw new Error(`it is ${node?.Status}`);
    };
    await eventually(look, { timeoutMs, intervalMs: 100, what: `host ${n} ${status}` });
  }

  /** Brings images of the tests' engine to all hosts that run. */
  async loadImages(names: readonly string[]): Promise<void> {
    const archive = await archiveOf(names);
    await this.#onEach(async (n) => this.docker(n, 'load', '--quiet', '--input', archive));
  }

  /** Gives an image a further name on all hosts that run. */
  async tag(image: string, name: string): Promise<void> {
    await this.#onEach(async (n) => this.docker(n, 'tag', image, name));
  }

  /** Makes a changed image on all hosts that run: another version, or a broken one. */
  async build(name: string, change: ChangedImage): Promise<void> {
    const context = await makeContext(this.dir, change);
    await this.#onEach(async (n) => {
      const client = ['--host', this.host(n).endpoint, 'build', '--quiet', '--tag', name, context];
      // eslint-disable-next-line node/no-process-env
      await run('docker', client, { env: { ...process.env, DOCKER_BUILDKIT: '0' } });
    });
    await rm(context, { recursive: true });
  }

  /** What `docker stack services` says, with the state of the last update of each. */
  async services(stack: string): Promise<ServiceState[]> {
    const n = await this.manager();
    const ids = await this.docker(n, 'stack', 'services', '--quiet', stack);
    if (ids === '') return [];
    const listed = await this.docker(n, 'stack', 'services', '--format', '{{json .}}', stack);
    const inspected = await this.docker(n, 'service', 'inspect', ...ids.split('\n'));
    return servicesFrom(listed, inspected);
  }

  /**
   * Waits until all services of a stack have what they want and no update or rollback of them is under way. How an update ended is in
   * `update`: one that Swarm rolled back has converged too.
   */
  async converged(stack: string, timeoutMs = 180_000): Promise<ServiceState[]> {
    const look = async (): Promise<ServiceState[]> => {
      const services = await this.services(stack);
      const waiting = services.filter(notSettled);
      if (services.length === 0) throw new Error(`${stack} has no services`);
      if (waiting.length > 0) throw new Error(JSON.stringify(waiting));
      return services;
    };
    try {
      return await eventually(look, { timeoutMs, intervalMs: 250, what: `${stack} converged` });
    } catch (error) {
      const n = await this.manager();
      const tasks = await this.docker(n, 'stack', 'ps', '--no-trunc', stack);
      throw new Error(`${(error as Error).message}\n${tasks}`, { cause: error });
    }
  }

  /** Containers of a service that run on a host. */
  async containersOf(service: string, n: number): Promise<string[]> {
    const filter = `label=com.docker.swarm.service.name=${service}`;
    const ids = await this.docker(n, 'ps', '--quiet', '--filter', filter);
    return ids.split('\n').filter(Boolean);
  }

  /** Cuts a host off, without a word to anybody: from everybody, or from the given other hosts alone. */
  async cut(n: number, from?: readonly number[]): Promise<void> {
    if (from === undefined) return this.#wire.pass(n, false);
    for (const other of from) {
      await this.#firewall(n, ['-I', 'INPUT', '-s', `${this.address(other)}/32`]);
      await this.#firewall(n, ['-I', 'OUTPUT', '-d', `${this.address(other)}/32`]);
    }
  }

  /** Undoes all cuts of a host. */
  async heal(n: number): Promise<void> {
    await this.#wire.pass(n, true);
    const { stdout } = await this.#inside(n, ['iptables', '-w', '-S']);
    for (const rule of stdout.split('\n').filter((line) => line.includes(this.#mark))) {
      await this.#inside(n, ['iptables', '-w', ...rule.replace(/^-A/, '-D').split(' ')]);
    }
  }

  /** A power cut. */
  async kill(n: number): Promise<void> {
    await this.host(n).kill();
  }

  /** Boots a host that was killed or stopped; what it had on disk is there. */
  async start(n: number): Promise<void> {
    await this.host(n).start();
  }

  /** An orderly shutdown. */
  async stop(n: number): Promise<void> {
    await this.host(n).stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }

  /** Makes the hosts nodes of one Swarm, the first ones as managers. */
  async formSwarm(managers: number): Promise<void> {
    const on = (n: number) => [
      '--advertise-addr',
      this.address(n),
      '--listen-addr',
      this.address(n),
    ];
    await this.docker(1, 'swarm', 'init', ...on(1), '--task-history-limit', '3');
    for (const n of this.numbers.slice(1)) {
      const role = n <= managers ? 'manager' : 'worker';
      const token = await this.docker(1, 'swarm', 'join-token', '--quiet', role);
      await this.docker(n, 'swarm', 'join', ...on(n), '--token', token, `${this.address(1)}:2377`);
    }
    await Promise.all(this.numbers.map(async (n) => this.untilNode(n, 'Ready')));
  }

  get #mark(): string {
    return `cut-${this.name}`;
  }

  #running(): number[] {
    return this.#hosts.filter((host) => host.isRunning).map(({ number }) => number);
  }

  async #onEach(work: (n: number) => Promise<unknown>): Promise<void> {
    await Promise.all(this.#running().map(work));
  }

  async #firewall(n: number, rule: readonly string[]): Promise<void> {
    const marked = [...rule, '-m', 'comment', '--comment', this.#mark, '-j', 'DROP'];
    await this.#inside(n, ['iptables', '-w', ...marked]);
  }

  async #inside(n: number, command: readonly string[]): Promise<{ readonly stdout: string }> {
    const [program = '', ...args] = [...this.host(n).enter, ...command];
    return run(program, args);
  }
}
