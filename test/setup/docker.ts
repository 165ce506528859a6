/* eslint-disable node/no-process-env */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import type { TestProject } from 'vitest/node';

import { findEngine, startEngine, type DockerEngine } from '#test/support/docker-engine.ts';
import { debianMirror, provideStandIns, type BaseImages } from '#test/support/stand-in-images.ts';

const run = promisify(execFile);
const top = join(import.meta.dirname, '../..');

/** What the tests of the deployment need to know of the engine; read it with `inject('docker')`. */
export interface TestDocker {
  readonly host: string;
  /** Command line before another that runs in the engine's network. */
  readonly enter: readonly string[];
  readonly image: string;
  readonly images: BaseImages;
  /** Command line of Compose 2; empty where there is none. */
  readonly compose: readonly string[];
  /** A folder that is there as long as the engine, for what several test files need. */
  readonly scratch: string;
  /** Why there is no engine, in words. */
  readonly missing?: string;
  /** Why hosts for a Swarm cannot be made here, in words. */
  readonly missingHosts?: string;
}

declare module 'vitest' {
  interface ProvidedContext {
    docker: TestDocker;
  }
}

const images: BaseImages = {
  node: 'node:24-trixie-slim',
  debian: 'debian:trixie-slim',
  postgres: 'postgres:18.4',
  nginx: 'nginx:1.30',
};
const image = 'event-broker:test';
const packages = 'docker.io containerd runc iptables iproute2 debootstrap'.split(' ');
/** What a host of its own is made with. */
const hostCommands = 'dockerd containerd iptables ip bridge nsenter setpriv unshare docker'.split(
  ' ',
);

/** vitest loads this file once for each project that names it, in one process; they share one engine through this. */
const shared = globalThis as {
  eventBrokerTestDocker?: { users: number; ready: Promise<Running> };
};
type Running = { readonly provided: TestDocker; stop(): Promise<void> };

/**
 * vitest global setup: a Docker engine (the machine's, else one of its own), base images (those of a registry, else stand-ins)
 * and the project's image, for all projects of a run. TEST_DEPLOY_CACHE names a folder that keeps the stand-ins for the next run.
 */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  shared.eventBrokerTestDocker ??= { users: 0, ready: prepare() };
  const current = shared.eventBrokerTestDocker;
  current.users += 1;
  project.provide('docker', (await current.ready).provided);
  return async () => {
    current.users -= 1;
    if (current.users > 0) return;
    delete shared.eventBrokerTestDocker;
    await (await current.ready).stop();
  };
}

async function prepare(): Promise<Running> {
  const engine = await engineOrReason();
  if (typeof engine === 'string') {
    process.stdout.write(`Docker engine of the tests: none (${engine})\n`);
    const nothing = { host: '', enter: [], image, images, compose: [], scratch: '' };
    const provided = { ...nothing, missing: engine, missingHosts: engine };
    return { provided, stop: async () => {} };
  }
  process.stdout.write(`Docker engine of the tests: ${engine.description}\n`);
  const scratch = await mkdtemp(join(tmpdir(), 'event-broker-images-'));
  const cleanUp = async () => {
    await rm(scratch, { recursive: true, force: true });
    if (engine.enter.length === 0)
      await run('docker', ['--host', engine.host, 'rmi', '--force', image]).catch(() => {});
    await engine.stop();
  };
  try {
    const kept = process.env['TEST_DEPLOY_CACHE'] ?? scratch;
    await step('base images', () => provideBaseImages(engine, kept));
    await step('the image', () => buildImage(engine));
    const compose = await step('Compose', () => findCompose(kept));
    const { host, enter } = engine;
    const reason = await whyNoHosts();
    const missing = reason === undefined ? {} : { missingHosts: reason };
    const provided = { host, enter, image, images, compose, scratch, ...missing };
    return { provided, stop: cleanUp };
  } catch (error) {
    await cleanUp();
    throw error;
  }
}

async function step<Result>(what: string, work: () => Promise<Result>): Promise<Result> {
  const startedAt = performance.now();
  const result = await work();
  process.stdout.write(`${what}: ${((performance.now() - startedAt) / 1000).toFixed(1)} s\n`);
  return result;
}

async function engineOrReason(): Promise<DockerEngine | string> {
  const found = await findEngine();
  if (found !== undefined) return found;
  if (process.getuid?.() !== 0) return 'no engine answers, and only root can start one';
  if (!existsSync('/usr/bin/apt-get')) return 'no engine answers, and only Debian’s is installed';
  if (!(await hasAll([...hostCommands, 'debootstrap']))) await installEngine();
  return startEngine();
}

/** Where the machine's own engine answers, nothing is installed beside it. */
async function whyNoHosts(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'only root can make hosts';
  if (!(await hasAll(hostCommands))) return `not all there: ${hostCommands.join(', ')}`;
  return undefined;
}

async function hasAll(commands: readonly string[]): Promise<boolean> {
  const look = commands.map((command) => `command -v ${command}`).join(' && ');
  return run('sh', ['-c', look]).then(
    () => true,
    () => false,
  );
}

async function installEngine(): Promise<void> {
  // The package would start the engine in the machine's own network.
  const policy = '/usr/sbin/policy-rc.d';
  const isOurs = !existsSync(policy);
  if (isOurs) await writeFile(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 });
  try {
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
    await run('apt-get', ['update'], { env, maxBuffer: 64 << 20 });
    const install = ['install', '--yes', '--no-install-recommends', ...packages];
    await run('apt-get', install, { env, maxBuffer: 64 << 20 });
  } finally {
    if (isOurs) await rm(policy);
  }
}

async function provideBaseImages(engine: DockerEngine, dir: string): Promise<void> {
  const docker = ['docker', '--host', engine.host];
  for (const name of Object.values(images)) {
    const has = await run('docker', [...docker.slice(1), 'image', 'inspect', name]).catch(
      () => undefined,
    );
    // One that cannot be had stands for all: they come from one registry.
    const pulled =
      has ??
      (await run('docker', [...docker.slice(1), 'pull', '--quiet', name], {
        timeout: 120_000,
      }).catch(() => undefined));
    if (pulled !== undefined) continue;
    process.stdout.write(`${name} cannot be had: stand-ins made of Debian's packages\n`);
    await provideStandIns(docker, dir, images);
    return;
  }
}

async function buildImage(engine: DockerEngine): Promise<void> {
  const registry = process.env['NPM_CONFIG_REGISTRY'];
  const args = {
    NODE_IMAGE: images.node,
    BASE_IMAGE: images.debian,
    VERSION: '9.8.7',
    REVISION: 'a-revision',
    ...(registry === undefined ? {} : { NPM_CONFIG_REGISTRY: registry }),
    ...(engine.proxy === undefined ? {} : { HTTPS_PROXY: engine.proxy, https_proxy: engine.proxy }),
  };
  const options = Object.entries(args).flatMap(([name, value]) => [
    '--build-arg',
    `${name}=${value}`,
  ]);
  await run(
    'docker',
    [
      '--host',
      engine.host,
      'build',
      ...(engine.proxy === undefined ? [] : ['--network', 'host']),
      ...options,
      '--file',
      'deploy/Dockerfile',
      '--tag',
      image,
      '.',
    ],
    { cwd: top, maxBuffer: 64 << 20, env: { ...process.env, DOCKER_BUILDKIT: '0' } },
  );
}

/** Compose 2: the client's plugin, else the binary of a Debian suite that has it, which runs anywhere. */
async function findCompose(dir: string): Promise<string[]> {
  for (const command of [['docker', 'compose'], ['docker-compose']]) {
    const { stdout } = await run(command[0]!, [...command.slice(1), 'version', '--short']).catch(
      () => ({ stdout: '' }),
    );
    if (/^v?2\./.test(stdout)) return command;
  }
  const binary = join(dir, 'docker-compose');
  if (existsSync(binary)) return [binary];
  const work = join(dir, 'apt');
  await mkdir(join(work, 'lists'), { recursive: true });
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
  await writeFile(
    join(work, 'sources.list'),
    `deb [signed-by=${keyring}] ${await debianMirror()} forky main\n`,
  );
  const options = {
    'Dir::Etc::SourceList': join(work, 'sources.list'),
    'Dir::Etc::SourceParts': '/dev/null',
    'Dir::State::Lists': join(work, 'lists'),
    'Dir::Cache': join(work, 'cache'),
    'APT::Sandbox::User': 'root',
  };
  const apt = Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  await run('apt-get', [...apt, 'update'], { cwd: work, maxBuffer: 64 << 20 });
  await run('apt-get', [...apt, 'download', 'docker-compose'], { cwd: work });
  const archive = (await readdir(work)).find((name) => name.endsWith('.deb'));
  if (archive === undefined) return [];
  await run('dpkg', ['-x', archive, 'unpacked'], { cwd: work });
  await copyFile(join(work, 'unpacked/usr/libexec/docker/cli-plugins/docker-compose'), binary);
  await rm(work, { recursive: true });
  return [binary];
}
