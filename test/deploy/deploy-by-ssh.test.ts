/**
 * Goal: a deployment by SSH reaches the right manager with the right files and image, or changes nothing there.
 *
 * Method: deploy/release/deploy-by-ssh in a repository of its own, and a real sshd on the loopback. What Swarm does is the
 * subject of other tests: here deploy/swarm/deploy writes down what it was given, and fails when it is told to.
 */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, readlink, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import { whyNotThere } from '#test/support/debian-package.ts';
import { releaseImage as image, ReleaseRepository } from '#test/support/release-repository.ts';
import { SshServer } from '#test/support/ssh-server.ts';

let repository: ReleaseRepository;
beforeEach(async () => {
  repository = await ReleaseRepository.create();
});
afterEach(async () => repository[Symbol.asyncDispose]());

describe('deploy-by-ssh', () => {
  let missing: string | undefined;
  let manager: string;
  let server: SshServer | undefined;
  let env: NodeJS.ProcessEnv;

  beforeAll(async () => {
    missing = await whyNotThere('/usr/sbin/sshd', 'openssh-server');
    missing ??= await whyNotThere('ssh', 'openssh-client');
    if (missing !== undefined) {
      console.log(missing);
      return;
    }
    server = await SshServer.start();
    env = {
      DEPLOY_HOST: '127.0.0.1',
      DEPLOY_PORT: String(server.port),
      DEPLOY_USER: userInfo().username,
      DEPLOY_SSH_KEY: server.userKey,
      DEPLOY_KNOWN_HOSTS: server.knownHost('host'),
    };
  }, 300_000);
  afterAll(async () => server?.[Symbol.asyncDispose]());

  beforeEach(async () => {
    manager = await mkdtemp(join(tmpdir(), 'event-broker-manager-'));
    await mkdir(join(manager, 'secrets'));
    await writeFile(join(manager, 'secrets/key'), 'a-secret');
    await writeFile(
      join(manager, '.env.prod'),
      'LOG_LEVEL=info\nBROKER_IMAGE=registry.example/broker:old\nPUBLIC_HOST=broker.example\n',
    );
    // more than a new file would get
    await chmod(join(manager, '.env.prod'), 0o660);
    await repository.commit();
  });
  afterEach(async () => rm(manager, { recursive: true, force: true }));

  const deploy = async (changed: NodeJS.ProcessEnv = {}, version = '1.2.3') =>
    repository.call('deploy-by-ssh', [version, image], { ...env, DEPLOY_DIR: manager, ...changed });
  const settings = () => readFileSync(join(manager, '.env.prod'), 'utf8');
  const record = () => readFileSync(join(manager, 'record'), 'utf8');

  test('the files of the commit run with the settings and secrets of the manager, and the settings name the image then', async ({
    skip,
  }) => {
    if (missing !== undefined) skip(missing);
    await repository.put('uncommitted', '');
    const { code, stdout, stderr } = await deploy();
    expect(code, stderr).toBe(0);
    expect(stdout).toContain(`Release 1.2.3 is deployed: ${image}`);
    expect(record()).toBe(
      `arguments --yes\nimage ${image}\nsettings LOG_LEVEL=info\nsecret a-secret\n`,
    );
    expect(settings()).toBe(`LOG_LEVEL=info\nPUBLIC_HOST=broker.example\nBROKER_IMAGE=${image}\n`);
    expect((await stat(join(manager, '.env.prod'))).mode & 0o777).toBe(0o660);
    expect(await readlink(join(manager, 'current'))).toBe('releases/1.2.3');
    expect((await readdir(join(manager, 'current'))).toSorted()).toEqual([
      '.env.example',
      '.env.prod',
      'deploy',
      'docker-compose.prod.yml',
      'docker-compose.yml',
      'secrets',
    ]);
    // once more is no error, and says the image once
    expect(await deploy()).toMatchObject({ code: 0 });
    expect(settings().match(/BROKER_IMAGE/g)).toHaveLength(1);
  });

  test('a deployment that fails says so, and leaves the settings and the current release as they were', async ({
    skip,
  }) => {
    if (missing !== undefined) skip(missing);
    await deploy();
    const before = settings();
    await writeFile(join(manager, 'fail'), '');
    const { code, stderr } = await deploy({}, '1.2.4');
    expect(code).toBe(1);
    expect(stderr).toContain('the new version did not hold');
    expect(settings()).toBe(before);
    expect(await readlink(join(manager, 'current'))).toBe('releases/1.2.3');
  });

  test('a host with another key than the known one is not talked to', async ({ skip }) => {
    if (missing !== undefined) skip(missing);
    const { code, stderr } = await deploy({ DEPLOY_KNOWN_HOSTS: server!.knownHost('other') });
    expect(code).toBe(1);
    expect(stderr).toMatch(/host key verification failed/i);
    expect(await readdir(manager)).toEqual(['.env.prod', 'secrets']);
  });

  test('a manager without settings is not deployed to', async ({ skip }) => {
    if (missing !== undefined) skip(missing);
    await rm(join(manager, '.env.prod'));
    const { code, stderr } = await deploy();
    expect(code).toBe(1);
    expect(stderr).toContain('has no .env.prod and secrets there');
    expect(await readdir(manager)).toEqual(['secrets']);
  });

  test.for([
    ['DEPLOY_HOST', '-oProxyCommand=id'],
    ['DEPLOY_USER', 'root -o x'],
    ['DEPLOY_DIR', '/opt/$(id)'],
    ['DEPLOY_DIR', '/opt/../etc'],
    ['DEPLOY_PORT', '22 -v'],
  ])('%s=%s is refused before anything is called', async ([name, value], { skip }) => {
    if (missing !== undefined) skip(missing);
    const { code, stderr } = await deploy({ [name!]: value });
    expect(code).toBe(1);
    expect(stderr).toContain(`deploy-by-ssh: ${name} is no`);
  });

  test('two deployments do not meet, and old releases go', async ({ skip }) => {
    if (missing !== undefined) skip(missing);
    const holder = spawn(
      'flock',
      [join(manager, '.deploying'), 'sh', '-c', 'echo held; exec cat'],
      {
        stdio: ['pipe', 'pipe', 'inherit'],
      },
    );
    await new Promise((resolve) => holder.stdout.once('data', resolve));
    const { code, stderr } = await deploy();
    expect(code).toBe(1);
    expect(stderr).toContain('another deployment runs');
    expect(existsSync(join(manager, 'record'))).toBe(false);
    const ended = new Promise((resolve) => holder.once('exit', resolve));
    holder.stdin.end();
    await ended;

    for (let minor = 0; minor < 12; minor += 1)
      await mkdir(join(manager, `releases/0.${minor}.0`), { recursive: true });
    expect(await deploy()).toMatchObject({ code: 0 });
    const kept = await readdir(join(manager, 'releases'));
    expect(kept).toHaveLength(10);
    expect(kept).toContain('1.2.3');
  });
});
