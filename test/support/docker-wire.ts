import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { readlinkSync } from 'node:fs';
import { promisify } from 'node:util';

import { eventually } from './eventually.ts';

const run = promisify(execFile);

/**
 * A bridge in a network namespace of its own, with this machine and any number of hosts on it: their switch. No firewall rule of this
 * machine sees what goes over it, and it goes with the process of the tests, however that ends. Only for root.
 */
export class Wire {
  /** The first three numbers of every address on it. */
  readonly network: string;
  readonly #device: string;
  readonly #holder: ChildProcess;

  private constructor(name: string, network: string, holder: ChildProcess) {
    this.network = network;
    this.#device = `eb${name}`;
    this.#holder = holder;
  }

  /** `name`: at most 13 characters, as they may stand in the name of a network device. */
  static async open(name: string): Promise<Wire> {
    const network = await freeNetwork();
    const holder = spawn('setpriv', '--pdeathsig KILL unshare --net sleep infinity'.split(' '), {
      stdio: 'ignore',
      detached: true,
    });
    const wire = new Wire(name, network, holder);
    try {
      await eventually(
        () => {
          if (namespaceOf(holder.pid) === namespaceOf('self')) throw new Error('not yet');
        },
        { what: 'a network namespace' },
      );
      await wire.#connectMachine();
      return wire;
    } catch (error) {
      await wire.close();
      throw error;
    }
  }

  /** This machine's address on it. */
  get address(): string {
    return `${this.network}.1`;
  }

  addressOf(host: number): string {
    return `${this.network}.${10 + host}`;
  }

  /** Gives the network namespace of a process the address of a host. */
  async plug(host: number, pid: number): Promise<void> {
    await this.unplug(host);
    // The same hardware address after each boot: others remember the one they knew.
    const [, , third = 0] = this.network.split('.').map(Number);
    const mac = `02:53:57:4c:${hex(third)}:${hex(host)}`;
    const port = portOf(host);
    await this.#ip(`link add ${port} type veth peer name eth0 address ${mac} netns ${pid}`);
    await this.#ip(`link set ${port} master br0 up`);
    const inside = (words: string) => runInside(pid, `ip ${words}`);
    await inside('link set lo up');
    // No default route: a name that nobody knows fails at once.
    await inside(`addr add ${this.addressOf(host)}/24 dev eth0`);
    await inside('link set eth0 up');
  }

  /** Takes the cable out, whatever is at its other end. */
  async unplug(host: number): Promise<void> {
    await this.#ip(`link del ${portOf(host)}`).catch(() => {});
  }

  /** Stops or resumes to pass on what comes and goes at a host's port, while the host sees its cable plugged: as a broken switch does. */
  async pass(host: number, isPassing: boolean): Promise<void> {
    // of the spanning tree: 0 is disabled, 3 forwards
    await this.#inside(`bridge link set dev ${portOf(host)} state ${isPassing ? 3 : 0}`);
  }

  async close(): Promise<void> {
    await run('ip', ['link', 'del', this.#device]).catch(() => {});
    if (this.#holder.exitCode !== null || this.#holder.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#holder.once('exit', resolve));
    this.#holder.kill('SIGKILL');
    await ended;
  }

  async #connectMachine(): Promise<void> {
    await this.#ip('link add br0 type bridge');
    await this.#ip('link set br0 up');
    const peer = `type veth peer name machine netns ${this.#holder.pid}`;
    await run('ip', `link add ${this.#device} ${peer}`.split(' '));
    await this.#ip('link set machine master br0 up');
    await run('ip', ['addr', 'add', `${this.address}/24`, 'dev', this.#device]);
    await run('ip', ['link', 'set', this.#device, 'up']);
  }

  async #ip(words: string): Promise<void> {
    await this.#inside(`ip ${words}`);
  }

  async #inside(words: string): Promise<void> {
    await runInside(this.#holder.pid ?? 0, words);
  }
}

/** Command line to put before another, so that this one runs in the network of a process. */
export function enterNetwork(pid: number): string[] {
  // `ip netns exec` would hide the cgroups: it mounts /sys anew.
  return ['nsenter', `--net=/proc/${pid}/ns/net`, '--'];
}

async function runInside(pid: number, words: string): Promise<void> {
  const [command = '', ...args] = [...enterNetwork(pid), ...words.split(' ')];
  await run(command, args);
}

/** A /24 that nothing of this machine leads to yet. */
async function freeNetwork(): Promise<string> {
  const first = randomInt(256);
  for (let n = 0; n < 256; n += 1) {
    const network = `10.87.${(first + n) % 256}`;
    const { stdout } = await run('ip', `-json route show to match ${network}.1`.split(' '));
    const routes = JSON.parse(stdout || '[]') as { readonly dst: string }[];
    if (routes.every(({ dst }) => dst === 'default')) return network;
  }
  throw new Error('all of 10.87.0.0/16 is taken on this machine');
}

function namespaceOf(pid: number | 'self' | undefined): string {
  return readlinkSync(`/proc/${pid}/ns/net`);
}

function portOf(host: number): string {
  return `port${host}`;
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}
