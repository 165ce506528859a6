import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, globSync, openSync, closeSync, readFileSync, rmdirSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';

import { enterNetwork, type Wire } from './docker-wire.ts';
import { eventually } from './eventually.ts';

const run = promisify(execFile);
const prefix = 'event-broker-docker-';
/** Longer than any container of a test is given to stop. */
const stopMs = 120_000;

export interface DockerHostOptions {
  /** Of `makeHostsDir`. */
  readonly dir: string;
  readonly wire: Wire;
  /** From 1: its place on the wire. */
  readonly number: number;
}

/**
 * A machine for Docker: a dockerd in network, mount, process and host-name namespaces of its own. One signal ends it with all of its
 * containers; what it had on disk is there again when it is started again. Only for root.
 */
export class DockerHost {
  readonly number: number;
  /** For the client: DOCKER_HOST. It answers also while the host is cut off from the wire. */
  readonly endpoint: string;
  readonly #dir: string;
  readonly #cgroup: string;
  readonly #wire: Wire;
  #child: ChildProcess | undefined;
  #first = 0;

  constructor({ dir, wire, number }: DockerHostOptions) {
    this.number = number;
    this.#wire = wire;
    this.#dir = join(dir, `host${number}`);
    this.#cgroup = `${cgroupOf(dir)}/host${number}`;
    this.endpoint = `unix://${this.#dir}/docker.sock`;
  }

  /** On the wire. */
  get address(): string {
    return this.#wire.addressOf(this.number);
  }

  get isRunning(): boolean {
    const child = this.#child;
    return child !== undefined && child.exitCode === null && child.signalCode === null;
  }

  /** The first of its processes, as this machine numbers them. */
  get pid(): number {
    return this.#first;
  }

  /** Command line to put before another, so that this one runs in its network: ports that it publishes on 127.0.0.1 are only there. */
  get enter(): readonly string[] {
    return enterNetwork(this.#first);
  }

  /** Boots it, and waits until its dockerd answers. */
  async start(): Promise<void> {
    if (this.isRunning) throw new Error(`host ${this.number} runs already`);
    for (const each of ['etc', 'opt', 'var/lib']) {
      for (const layer of ['upper', 'scratch'])
        await mkdir(join(this.#dir, layer, each), { recursive: true });
    }
    await mkdir(join(this.#dir, 'data'), { recursive: true });
    await rm(join(this.#dir, 'docker.sock'), { force: true });
    const boot = join(this.#dir, 'boot.sh');
    await writeFile(boot, this.#bootScript(), { mode: 0o755 });
    const log = openSync(join(this.#dir, 'log'), 'a');
    // It dies with the process of the tests, however that dies.
    const child = spawn(
      'setpriv',
      `--pdeathsig KILL unshare --net --mount --propagation private --uts --pid --fork --kill-child=KILL --mount-proc ${boot}`.split(
        ' ',
      ),
      { stdio: ['pipe', log, log], detached: true },
    );
    closeSync(log);
    this.#child = child;
    child.stdin?.on('error', () => undefined);
    this.#first = await firstProcess(child);
    await this.#wire.plug(this.number, this.#first);
    // A dockerd that is a node of a swarm wants its address when it starts.
    child.stdin?.end('the network is there\n');
    await eventually(async () => this.#answers(), {
      timeoutMs: 60_000,
      intervalMs: 100,
      what: 'dockerd',
    }).catch((cause: unknown) => {
      throw new Error(`dockerd: ${this.log().slice(-2000)}`, { cause });
    });
  }

  /** What its dockerd wrote, in all of its lives. */
  log(): string {
    return readFileSync(join(this.#dir, 'log'), 'utf8');
  }

  /** An orderly shutdown: containers are told to stop, and given their time. */
  async stop(): Promise<void> {
    if (this.isRunning) {
      process.kill(this.#first, 'SIGTERM');
      await eventually(() => this.#ended(), { timeoutMs: stopMs, what: 'an end of dockerd' });
    }
    await this.kill();
  }

  /** A power cut: everything on it ends at once, and nobody is told. */
  async kill(): Promise<void> {
    // first the wire, so that the others hear silence and no reset
    await this.#wire.unplug(this.number);
    const child = this.#child;
    if (child !== undefined && this.isRunning) {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await ended;
    }
    await eventually(() => this.#ended(), { what: 'an end of all its processes' });
    await removeCgroups(this.#cgroup);
  }

  async #answers(): Promise<void> {
    if (this.isRunning)
      await run('docker', ['--host', this.endpoint, 'version'], { timeout: 5000 });
  }

  #ended(): void {
    const status = `/proc/${this.#first}/status`;
    if (this.#first === 0 || !existsSync(status)) return;
    if (!/^State:\s+Z/m.test(readFileSync(status, 'utf8'))) throw new Error('it lives');
  }

  // A file system in memory over all of /run is what a boot gives: sockets and pid files of its own. The overlays catch what
  // dockerd writes outside of its data root. The machine's own options of dockerd do not hold here, nor its identity.
  #bootScript(): string {
    const dir = this.#dir;
    return `#!/bin/bash
read -r _
hostname node${this.number}
mount -t tmpfs -o mode=755 tmpfs /run
for each in etc opt var/lib; do
  mount -t overlay overlay -o "lowerdir=/$each,upperdir=${dir}/upper/$each,workdir=${dir}/scratch/$each" "/$each"
done
rm -f /etc/docker/daemon.json
[[ -e ${dir}/upper/etc/docker/key.json ]] || rm -f /etc/docker/key.json
dockerd --host unix://${dir}/docker.sock --data-root ${dir}/data --exec-root /run/docker --pidfile /run/docker.pid \\
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /${this.#cgroup} --log-level warn &
trap "kill -TERM $!" TERM
while kill -0 $! 2>/dev/null; do wait $!; done # the first process also reaps what others leave
`;
  }
}

/** A folder for hosts. What runs of tests that were killed have left is removed on the way. */
export async function makeHostsDir(): Promise<string> {
  for (const name of await readdir(tmpdir())) {
    const dir = join(tmpdir(), name);
    if (!name.startsWith(prefix) || !existsSync(join(dir, 'owner'))) continue;
    const owner = readFileSync(join(dir, 'owner'), 'utf8');
    if (owner !== '' && !existsSync(`/proc/${owner}`)) await removeHostsDir(dir);
  }
  const dir = await mkdtemp(join(tmpdir(), prefix));
  await writeFile(join(dir, 'owner'), String(process.pid));
  return dir;
}

/** Removes it with the control groups of its hosts, none of which runs any more. */
export async function removeHostsDir(dir: string): Promise<void> {
  await removeCgroups(cgroupOf(dir));
  await rm(dir, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
}

/** Six characters that are nobody else's on this machine. */
export function nameOf(dir: string): string {
  return basename(dir).slice(prefix.length);
}

function cgroupOf(dir: string): string {
  return `event-broker-${nameOf(dir)}`;
}

async function firstProcess(child: ChildProcess): Promise<number> {
  return eventually(
    () => {
      const [first] = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').split(
        ' ',
      );
      if (!first) throw new Error('no process yet');
      return Number(first);
    },
    { what: 'the first process of a host' },
  );
}

async function removeCgroups(name: string): Promise<void> {
  for (const top of globSync([`/sys/fs/cgroup/*/${name}`, `/sys/fs/cgroup/${name}`])) {
    await eventually(() => {
      // deepest first
      for (const group of globSync(`${top}/**/`).toSorted((a, b) => b.length - a.length)) {
        rmdirSync(group);
      }
      if (existsSync(top)) rmdirSync(top);
    });
  }
}
