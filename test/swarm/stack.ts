import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { inject } from 'vitest';

import { endOf, type Ended } from '#test/support/docker.ts';
import type { Sql } from '#test/support/ledger-scenario.ts';
import { eventually } from '#test/support/eventually.ts';
import { type Answer, HttpClient, type Trust } from '#test/support/http-client.ts';

import type { Lab } from './lab.ts';
import { ConstantLoad, type ConstantLoadOptions } from './load.ts';
import { stackSql } from './stack-sql.ts';

const top = join(import.meta.dirname, '../..');
/** What the certificate of nginx is for. */
export const domain = 'broker.test';

/**
 * The project's own stack on a lab, brought up and changed by the project's own commands (deploy/swarm), as an operator types them on the
 * first host: with an `.env.prod` and a folder of secrets of its own.
 */
export class Stack {
  readonly lab: Lab;
  readonly envFile: string;
  readonly secretsDir: string;
  readonly #dir: string;
  #loads = 0;
  #loadKey: string | undefined;

  private constructor(lab: Lab, dir: string) {
    this.lab = lab;
    this.#dir = dir;
    this.envFile = join(dir, '.env.prod');
    this.secretsDir = join(dir, 'secrets');
  }

  /** Images on all hosts, labels, settings and secrets; nothing is deployed yet. PostgreSQL is to run on `databaseHost`. */
  static async prepare(lab: Lab, databaseHost = 1): Promise<Stack> {
    const { image, images } = inject('docker');
    await lab.loadImages([image, images.postgres, images.nginx]);
    await lab.tag(image, 'event-broker:v1');
    const manager = await lab.manager();
    const label = ['node', 'update', '--label-add', 'database=yes', `node${databaseHost}`];
    await lab.docker(manager, ...label);
    const dir = join(lab.dir, 'operator');
    await mkdir(dir);
    const stack = new Stack(lab, dir);
    await stack.configure({
      BROKER_IMAGE: 'event-broker:v1',
      POSTGRES_IMAGE: images.postgres,
      NGINX_IMAGE: images.nginx,
      SECRETS_DIR: stack.secretsDir,
      // the load comes from one address, and makes its topics through nginx
      ADMIN_ALLOW: lab.machineAddress,
      RATE_LIMIT_MAX: '100000',
      CLIENT_CONNECTIONS_MAX: '1000',
      ALLOW_PRIVATE_TARGETS: `${lab.machineAddress}/32`,
      POSTGRES_MEMORY: '1G',
      REAPER_REPLICAS: '2',
    });
    await stack.command('make-secrets', domain);
    return stack;
  }

  /** Sets settings in `.env.prod`; the others stay as they are. */
  async configure(settings: Readonly<Record<string, string>>): Promise<void> {
    const before = await readFile(this.envFile, 'utf8').catch(() => '');
    const lines = before.split('\n').filter((line) => {
      return line !== '' && !Object.hasOwn(settings, line.split('=')[0] ?? '');
    });
    for (const [name, value] of Object.entries(settings)) lines.push(`${name}=${value}`);
    await writeFile(this.envFile, `${lines.join('\n')}\n`);
  }

  /** A command of deploy/swarm to its end, whatever that is. */
  async try(name: string, ...args: string[]): Promise<Ended> {
    const ended = await this.#run(name, ...args);
    console.log(`$ deploy/swarm/${[name, ...args].join(' ')}\n${ended.stdout}${ended.stderr}`);
    return ended;
  }

  async #run(name: string, ...args: string[]): Promise<Ended> {
    return endOf([join(top, 'deploy/swarm', name), ...args], {
      env: {
        PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
        HOME: this.#dir,
        DOCKER_HOST: this.lab.host(await this.lab.manager()).endpoint,
        ENV_FILE: this.envFile,
        // no registry is reachable from the hosts
        RESOLVE_IMAGE: 'never',
        WAIT_SECONDS: '240',
      },
      timeoutMs: 600_000,
    });
  }

  /** A first deployment without the commands: the settings in the shell, and the file. */
  async deployByHand(): Promise<void> {
    const settings = (await readFile(this.envFile, 'utf8')).split('\n').filter(Boolean);
    const env = {
      ...Object.fromEntries(settings.map((line) => line.split(/=(.*)/s, 2))),
      PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
      DOCKER_HOST: this.lab.host(await this.lab.manager()).endpoint,
      ENV_FILE: this.envFile,
    };
    const file = join(top, 'docker-compose.prod.yml');
    const options = ['--detach=true', '--resolve-image', 'never', '--compose-file', file];
    const { code, stderr } = await endOf(['docker', 'stack', 'deploy', ...options, 'broker'], {
      env,
    });
    if (code !== 0) throw new Error(`docker stack deploy ended with ${code}: ${stderr}`);
    await this.lab.converged('broker');
  }

  /** What a command of deploy/swarm said; rejects when it fails. */
  async command(name: string, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.try(name, ...args);
    if (code !== 0) throw new Error(`${name} ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  }

  /** Waits until everything runs as it should, as `status` says it; hosts that are down are not counted on. */
  async settled(timeoutMs = 180_000): Promise<void> {
    const look = async (): Promise<void> => {
      const { code, stdout, stderr } = await this.#run('status');
      if (code !== 0) throw new Error(`${stdout}${stderr}`);
    };
    await eventually(look, { timeoutMs, intervalMs: 500, what: 'the stack settled' });
  }

  async secret(name: string): Promise<string> {
    return readFile(join(this.secretsDir, name), 'utf8');
  }

  /** Base URLs of nginx on every host. */
  get addresses(): string[] {
    return this.lab.numbers.map((n) => `https://${this.lab.address(n)}`);
  }

  /** A load on all hosts, with a topic of its own. */
  async startLoad(options: Partial<ConstantLoadOptions> = {}): Promise<ConstantLoad> {
    this.#loads += 1;
    return ConstantLoad.start({
      addresses: this.addresses,
      adminKey: await this.#ownKey(),
      trust: await this.trust(),
      sql: this.sql,
      receiverAddress: this.lab.machineAddress,
      topic: `orders${this.#loads}`,
      subscriptions: [`billing${this.#loads}`],
      pushSubscriptions: [`mailer${this.#loads}`],
      perSecond: 30,
      ...options,
    });
  }

  /** What clients trust. */
  async trust(): Promise<Trust> {
    return { ca: await this.secret('tls_fullchain'), servername: domain };
  }

  /** Asks the stack's PostgreSQL, as its superuser. */
  get sql(): Sql {
    return stackSql(this.lab, 'broker_postgres');
  }

  /** A request through nginx of host 1, with the first API key unless another is given. */
  async send(
    method: string,
    path: string,
    { body, key }: { readonly body?: unknown; readonly key?: string } = {},
  ): Promise<Answer> {
    const trust = await this.trust();
    using http = new HttpClient(key ?? (await this.secret('admin_api_key')), { trust });
    return await http.send(`${this.addresses[0]}${path}`, { method, body });
  }

  // The load outlives a rotation of the first API key.
  async #ownKey(): Promise<string> {
    if (this.#loadKey !== undefined) return this.#loadKey;
    const body = { name: 'load', scopes: ['admin'] };
    const { status, json } = await this.send('POST', '/api/v1/api-keys', { body });
    if (status !== 201) throw new Error(`no key for the load: ${status} ${JSON.stringify(json)}`);
    this.#loadKey = (json as { key: string }).key;
    return this.#loadKey;
  }

  /** Running tasks of a service on each host, by its number. */
  async spread(service: string): Promise<number[]> {
    const { lab } = this;
    const filter = ['--filter', 'desired-state=running', '--format', '{{.Node}} {{.CurrentState}}'];
    const text = await lab.docker(
      await lab.manager(),
      'service',
      'ps',
      ...filter,
      `broker_${service}`,
    );
    const running = text.split('\n').filter((line) => line.includes(' Running'));
    return lab.numbers.map((n) => running.filter((line) => line.startsWith(`node${n} `)).length);
  }

  /** Image of a service, without a digest. */
  async imageOf(service: string): Promise<string> {
    const all = await this.lab.services('broker');
    return all.find(({ name }) => name === `broker_${service}`)?.image ?? '';
  }
}
