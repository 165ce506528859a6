/**
 * Goal: what an operator gets wrong is refused in words that name it, with exit code 1, and what runs goes on running. Each symptom of
 * deploy/troubleshooting.md that one host can have is brought about for real.
 *
 * Method: the commands of deploy/swarm against a Swarm of one host: before there is a stack, on a first deployment that cannot succeed, and beside a stack that works.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, readFile, rename, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';

import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest';

import { endOf, type Ended } from '#test/support/docker.ts';
import { selfSigned } from '#test/support/self-signed.ts';

import { type Lab, startLab } from './lab.ts';
import { domain, Stack } from './stack.ts';

const engine = inject('docker');
const commands = join(import.meta.dirname, '../../deploy/swarm');
const minutes = (n: number): number => n * 60_000;

describe.skipIf(engine.missingHosts !== undefined)('what the commands refuse', () => {
  let lab: Lab;
  let stack: Stack;
  /** `.env.prod` that works. */
  let good: string;

  beforeAll(async () => {
    lab = await startLab({ hosts: 1 });
    stack = await Stack.prepare(lab);
    await stack.configure({ API_REPLICAS: '1', WORKER_REPLICAS: '1', REAPER_REPLICAS: '1' });
    good = await readFile(stack.envFile, 'utf8');
  }, minutes(10));
  afterAll(async () => lab[Symbol.asyncDispose](), minutes(2));
  afterEach(async () => writeFile(stack.envFile, good));

  /** A command as it is typed, without a terminal. */
  async function type(line: string, env: Readonly<Record<string, string>> = {}): Promise<Ended> {
    const [name = '', ...args] = line.split(' ');
    const ended = await endOf([join(commands, name), ...args], {
      env: {
        PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
        HOME: '/nonexistent',
        DOCKER_HOST: lab.host(1).endpoint,
        ENV_FILE: stack.envFile,
        RESOLVE_IMAGE: 'never',
        WAIT_SECONDS: '120',
        ...env,
      },
    });
    console.log(`$ deploy/swarm/${line}\n${ended.stdout}${ended.stderr}`);
    return ended;
  }

  async function expectRefusal(line: string, words: string, env = {}): Promise<Ended> {
    const ended = await type(line, env);
    expect({ line, code: ended.code }).toEqual({ line, code: 1 });
    expect(`${ended.stdout}${ended.stderr}`).toContain(words);
    return ended;
  }

  const services = async (): Promise<string[]> => {
    const text = await lab.docker(1, 'service', 'ls', '--format', '{{.Name}}');
    return text.split('\n').filter(Boolean).toSorted();
  };
  const onlyDatabase = ['broker_migrate', 'broker_postgres', 'broker_roles'];
  /** Ids of the tasks that run. */
  const running = async (service: string): Promise<string> =>
    lab.docker(1, 'service', 'ps', '--quiet', '--filter', 'desired-state=running', service);

  /** Writes a secret over, and brings it back when the test is over. */
  async function withSecret(name: string, text: string): Promise<AsyncDisposable> {
    const file = join(stack.secretsDir, name);
    const before = await readFile(file);
    await chmod(file, 0o644);
    await writeFile(file, text);
    return { [Symbol.asyncDispose]: async () => writeFile(file, before) };
  }
  async function withoutSecret(name: string): Promise<AsyncDisposable> {
    const file = join(stack.secretsDir, name);
    await rename(file, `${file}.aside`);
    return { [Symbol.asyncDispose]: async () => rename(`${file}.aside`, file) };
  }

  describe('before there is a stack', () => {
    const all = 'deploy rollback scale status smoke rotate-secret blue-green make-secrets';

    test.each(all.split(' '))('%s --help prints its head', async (name) => {
      const { code, stdout } = await type(`${name} --help`);
      expect(code).toBe(0);
      expect(stdout.split('\n')[0]).toMatch(new RegExp(`^${name}\\b`));
      const file = await readFile(join(commands, name), 'utf8');
      expect(file).toContain(`\n# ${stdout.split('\n')[0]}\n`);
    });

    test.each([
      ['deploy --now', "unknown argument '--now'"],
      ['rollback v1', "unknown argument 'v1'"],
      ['scale', 'scale SERVICE=REPLICAS'],
      ['scale nginx=3', "'nginx=3' is not SERVICE=REPLICAS"],
      ['scale api=0', 'api=0: at least 1'],
      ['scale api=-1', "'api=-1' is not SERVICE=REPLICAS"],
      ['status all', 'What runs where'],
      ['smoke broker.example.com', 'is not a URL'],
      ['rotate-secret', 'rotate-secret [--yes] NAME'],
      ['rotate-secret postgres_ca', "'postgres_ca' is no secret that can be rotated"],
      ['rotate-secret tls admin_api_key', 'one at a time'],
      ['blue-green', 'blue-green start IMAGE'],
      ['blue-green restart', 'blue-green start IMAGE'],
      ['make-secrets', 'make-secrets DOMAIN'],
      ['make-secrets https://broker.example.com', 'is not a name such as'],
      ['rollback --yes', "there is no stack 'broker': deploy first"],
      ['scale api=2', "there is no stack 'broker': deploy first"],
      ['rotate-secret --yes tls', "there is no stack 'broker': deploy first"],
      ['blue-green show', "there is no stack 'broker': deploy first"],
      ['smoke', 'there is no service broker_api: deploy first'],
      ['status', "there is no stack 'broker'"],
      ['deploy', 'there is no terminal: say --yes'],
    ])('%s', async (line, words) => {
      await expectRefusal(line, words);
      expect(await services()).toEqual([]);
    });

    test('.env.prod with no API', async () => {
      await writeFile(stack.envFile, good.replace(/^API_REPLICAS=.*/m, 'API_REPLICAS=0'));
      await expectRefusal('deploy --yes', 'API_REPLICAS and REAPER_REPLICAS are at least 1');
    });

    test.each([
      ['a secret', 'ADMIN_API_KEY=0123456789abcdef', 'ADMIN_API_KEY is a secret'],
      ['no setting', 'export LOG_LEVEL=info', 'a line that is not NAME=value'],
      ['quotes', 'LOG_LEVEL="info"', 'quotes around the value of LOG_LEVEL'],
      [
        'a comment behind a value',
        'LOG_LEVEL=info # quiet',
        'has a $ or a # in the value of LOG_LEVEL',
      ],
      [
        'a variable',
        'ALLOWED_ORIGINS=https://$HOSTNAME',
        'has a $ or a # in the value of ALLOWED_ORIGINS',
      ],
      ['a setting that is there twice', 'TLS=on\nTLS=off', 'sets TLS twice'],
      ['line ends of Windows', 'LOG_LEVEL=info\r', 'the line ends of Windows'],
      ['replicas in words', 'NGINX_REPLICAS=1\nWORKER_MEMORY=much', 'cannot be rendered'],
      ['too few connections', 'POSTGRES_MAX_CONNECTIONS=1', 'are too few: at least 20'],
    ])('.env.prod with %s', async (_, lines, words) => {
      await writeFile(stack.envFile, `${good}${lines}\n`);
      await expectRefusal('deploy --yes', words);
      expect(await services()).toEqual([]);
    });

    test('.env.prod without BROKER_IMAGE, with too little memory, and none at all', async () => {
      await writeFile(stack.envFile, good.replace(/^BROKER_IMAGE=.*\n/m, ''));
      await expectRefusal('deploy --yes', 'BROKER_IMAGE is not set');
      await writeFile(stack.envFile, good.replace(/^POSTGRES_MEMORY=.*/m, 'POSTGRES_MEMORY=100M'));
      await expectRefusal('deploy --yes', '100 MB of memory are too little');
      await expectRefusal('deploy --yes', "'cp .env.example .env.prod'", { ENV_FILE: '/nowhere' });
      await expectRefusal('deploy --yes', 'STACK is not a name', { STACK: 'a b' });
      expect(await services()).toEqual([]);
    });

    test('secrets that are missing, or half there, which make-secrets leaves as they are', async () => {
      {
        await using _ = await withoutSecret('tls_privkey');
        await expectRefusal('deploy --yes', 'tls_privkey is missing or empty');
        await expectRefusal(
          `make-secrets ${domain}`,
          'of tls_fullchain and tls_privkey one is there',
        );
        expect(await stack.secret('tls_fullchain')).toContain('CERTIFICATE');
      }
      await using _ = await withoutSecret('postgres_key');
      await expectRefusal(
        `make-secrets ${domain}`,
        'of postgres_ca, postgres_cert and postgres_key',
      );
    });

    test('what fails where nobody thought of it ends with words as well', async () => {
      const env = { SECRETS_DIR: stack.envFile };
      await writeFile(stack.envFile, good.replace(/^SECRETS_DIR=.*\n/m, ''));
      await expectRefusal(
        `make-secrets ${domain}`,
        'make-secrets: stopped, because a command failed',
        env,
      );
    });

    test('an engine that does not answer, and no host for the database', async () => {
      await expectRefusal('status', 'no Docker engine answers', { DOCKER_HOST: 'unix:///nowhere' });
      await lab.docker(1, 'node', 'update', '--label-rm', 'database', 'node1');
      await expectRefusal('deploy --yes', 'no host has the label database=yes');
      await lab.docker(1, 'node', 'update', '--label-add', 'database=yes', 'node1');
      expect(await services()).toEqual([]);
    });
  });

  describe('a first deployment', () => {
    test('settings that are wrong or misspelt: migrate names them, and no replica is made', async () => {
      await writeFile(stack.envFile, `${good}QUEUE_MAX_SIZE=many\nWORKER_CONT=3\n`);
      const { stdout, stderr } = await expectRefusal(
        'deploy --yes',
        'QUEUE_MAX_SIZE: must be a whole',
      );
      expect(stdout).toContain('WORKER_CONT: is not known; did you mean WORKER_COUNT?');
      expect(stderr).toContain('The replicas were not touched');
      expect(await services()).toEqual(onlyDatabase);
    });

    test('an image that no host has', async () => {
      await writeFile(
        stack.envFile,
        good.replace(/^BROKER_IMAGE=.*/m, 'BROKER_IMAGE=nobody/has:it'),
      );
      await expectRefusal('deploy --yes', 'No such image: nobody/has:it');
      expect(await services()).toEqual(onlyDatabase);
    });

    test('port 80 of the host is taken: deploy, status and smoke say that nginx does not run', async () => {
      const [program, ...args] = [
        ...lab.host(1).enter,
        process.execPath,
        '--eval',
        "require('node:net').createServer().listen(80, '0.0.0.0', () => console.log('listens'))",
      ];
      const other = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
      await once(other.stdout, 'data');
      try {
        const { stderr } = await expectRefusal(
          'deploy --yes',
          '0.0.0.0:80: bind: address already in use',
        );
        expect(stderr).toContain('nginx does not start');
        const { stdout } = await expectRefusal('status', 'something does not run as it should');
        expect(stdout).toContain('nginx 0/1, not all run');
        await expectRefusal('smoke', 'does not answer for a replica');
      } finally {
        other.kill('SIGKILL');
      }
    });
  });

  describe('beside a stack that works', () => {
    beforeAll(async () => void (await stack.command('deploy', '--yes')), minutes(5));
    const goesBack = 'the new version did not hold; Swarm went back to the one before';

    test('a secret that a replica refuses: its message, and the update goes back', async () => {
      await using _ = await withSecret('admin_api_key', 'short');
      const { stderr } = await expectRefusal(
        'deploy --yes',
        'ADMIN_API_KEY: must have at least 16 characters',
      );
      expect(stderr).toContain(`${goesBack}: api`);
      expect(await stack.spread('api')).toEqual([1]);
    });

    test('a list of addresses that nginx refuses', async () => {
      await writeFile(stack.envFile, good.replace(/^ADMIN_ALLOW=.*/m, 'ADMIN_ALLOW=office'));
      const { stderr } = await expectRefusal(
        'deploy --yes',
        "nginx start: ADMIN_ALLOW has 'office'",
      );
      expect(stderr).toContain(`${goesBack}: nginx`);
    });

    test('a key that does not fit the certificate', async () => {
      await using _ = await withSecret('tls_privkey', selfSigned({ names: [domain] }).key);
      const before = await running('broker_nginx');
      await expectRefusal('rotate-secret --yes tls', 'tls_privkey does not fit tls_fullchain');
      await expectRefusal('deploy --yes', 'tls_privkey does not fit tls_fullchain');
      expect(await running('broker_nginx')).toBe(before);
    });

    test("PostgreSQL's key does not fit: it is not stopped for that", async () => {
      await using _ = await withSecret('postgres_key', selfSigned({ names: ['postgres'] }).key);
      const before = await running('broker_postgres');
      await expectRefusal('deploy --yes', 'postgres_key does not fit postgres_cert');
      expect(await running('broker_postgres')).toBe(before);
      expect((await stack.send('GET', '/api/v1/topics')).status).toBe(200);
    });

    test('two operators at once: one deploys, the other is told who, or waits where nobody is asked', async () => {
      const impatient = { LOCK_SECONDS: '0' };
      const ended = await Promise.all([
        type('deploy --yes', impatient),
        type('deploy --yes', impatient),
      ]);
      expect(new Set(ended.map(({ code }) => code))).toEqual(new Set([0, 1]));
      const refused = ended.find(({ code }) => code === 1);
      expect(refused?.stderr).toMatch(
        /the stack is being changed: deploy by .* on .*, process \d+/,
      );
      const both = await Promise.all([type('scale api=1 worker=1'), type('deploy --yes')]);
      expect(both.map(({ code }) => code)).toContain(0);
      expect(both[1].code).toBe(0);
    });

    test('the lock of a process that is gone from this host is none; that of another host is kept', async () => {
      const node = await lab.docker(1, 'info', '--format', '{{.Swarm.NodeID}}');
      const lock = async (host: string): Promise<string> => {
        const label = `broker.changed.by=deploy by ops on ${host} (${node}), process 4194999, since then`;
        const command = ['config', 'create', '--label', label, 'broker_being_changed'];
        return lab.docker(1, ...command, stack.envFile);
      };
      await lock('elsewhere');
      await expectRefusal('scale api=1', `deploy by ops on elsewhere (${node}), process 4194999`);
      await lab.docker(1, 'config', 'rm', 'broker_being_changed');
      await lock(hostname());
      const { code, stdout } = await type('scale api=1');
      expect({ code, stdout }).toMatchObject({ code: 0 });
      expect(stdout).toContain('An earlier command was cut off: deploy by ops');
      expect(await lab.docker(1, 'config', 'ls', '--format', '{{.Name}}')).not.toContain('changed');
    });

    test('green that is not there, and nothing to go back to', async () => {
      await expectRefusal('blue-green switch green', 'there is no green');
      await expectRefusal('blue-green finish', 'there is no green');
      await expectRefusal('rollback --yes', 'there is nothing to go back to');
    });

    test('a host that is no manager', async () => {
      await lab.docker(1, 'swarm', 'leave', '--force');
      await expectRefusal('deploy --yes', 'this host is no manager of a Swarm');
    });
  });
});
