import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { request } from 'node:http';
import { homedir, hostname } from 'node:os';
import { join } from 'node:path';

import pg from 'pg';

import { eventually } from './eventually.ts';

/** A PostgreSQL in a container of testcontainers. */
export interface PostgresContainer {
  readonly superuserUrl: string;
  /** Which image, and which version it has. */
  readonly description: string;
  stop(): Promise<void>;
}

/** How the API of a Docker engine is reached. */
type Engine =
  | { readonly socketPath: string }
  | { readonly host: string; readonly port: string | undefined };

interface EngineAnswer {
  readonly status: number;
  readonly json: unknown;
}

const defaultImage = 'postgres:18-alpine';
/** Whose container it is: `host:pid` of the test run. */
const ownerLabel = 'event-broker.test-process';

/**
 * Starts PostgreSQL where a Docker engine answers and has the image (TEST_POSTGRES_IMAGE, else one of ours): tests never pull.
 * `undefined` where that is not so; an image that was asked for and is not there is an error.
 */
export async function startPostgresContainer(
  settings: Readonly<Record<string, string | number>>,
): Promise<PostgresContainer | undefined> {
  const asked = process.env['TEST_POSTGRES_IMAGE'] || undefined;
  const image = asked ?? defaultImage;
  const engine = findEngine();
  const found = engine && (await call(engine, 'GET', `/images/${image}/json`));
  if (engine === undefined || found?.status !== 200) {
    if (asked === undefined) return undefined;
    const why =
      found === undefined ? 'no Docker engine answers' : `the engine has no such image, pull it`;
    throw new Error(`TEST_POSTGRES_IMAGE is ${asked}, but ${why}`);
  }
  await chooseReaper(engine);
  await removeAbandoned(engine);
  return start(image, settings);
}

async function start(
  image: string,
  settings: Readonly<Record<string, string | number>>,
): Promise<PostgresContainer> {
  const { GenericContainer, Wait } = await import('testcontainers');
  const password = randomUUID();
  const container = await new GenericContainer(image)
    .withEnvironment({
      POSTGRES_USER: 'postgres',
      POSTGRES_PASSWORD: password,
      POSTGRES_DB: 'postgres',
    })
    .withLabels({ [ownerLabel]: `${hostname()}:${process.pid}` })
    .withExposedPorts(5432)
    .withCommand(Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]))
    .withWaitStrategy(Wait.forLogMessage(/ready to accept connections/))
    .start();
  const stop = async () => {
    await container.stop();
  };
  const address = `${container.getHost()}:${container.getMappedPort(5432)}`;
  const superuserUrl = `postgres://postgres:${password}@${address}/postgres`;
  try {
    // The server of an image's own set-up says that it is ready too; it listens on no port.
    const version = await eventually(async () => versionOf(superuserUrl), {
      timeoutMs: 60_000,
      intervalMs: 100,
      what: `PostgreSQL of ${image}`,
    });
    return { superuserUrl, description: `testcontainers, ${image}, ${version}, ${address}`, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function versionOf(url: string): Promise<string> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5000 });
  await client.connect();
  try {
    const { rows } = await client.query<{ server_version: string }>('show server_version');
    return `version ${rows[0]?.server_version}`;
  } finally {
    await client.end();
  }
}

/** The engine of DOCKER_HOST, else the first socket that is there. */
function findEngine(): Engine | undefined {
  const host = process.env['DOCKER_HOST'];
  if (host?.startsWith('tcp://')) {
    const { hostname: name, port } = new URL(host);
    return { host: name, port };
  }
  const sockets = host?.startsWith('unix://')
    ? [host.slice('unix://'.length)]
    : [
        '/var/run/docker.sock',
        join(process.env['XDG_RUNTIME_DIR'] ?? '/nonexistent', 'docker.sock'),
        join(homedir(), '.docker/run/docker.sock'),
      ];
  const socketPath = sockets.find((path) => existsSync(path));
  return socketPath === undefined ? undefined : { socketPath };
}

/** One call of the engine's API, of a few seconds at most; `undefined` where nobody answers. */
async function call(
  engine: Engine,
  method: string,
  path: string,
): Promise<EngineAnswer | undefined> {
  const timeout = method === 'GET' ? 2000 : 20_000;
  return new Promise((resolve) => {
    const asked = request(
      { ...engine, method, path, signal: AbortSignal.timeout(timeout) },
      (answer) => {
        const chunks: Buffer[] = [];
        answer.on('data', (chunk: Buffer) => chunks.push(chunk));
        answer.on('error', () => resolve(undefined));
        answer.on('end', () => {
          const text = Buffer.concat(chunks).toString();
          const isJson = answer.headers['content-type']?.startsWith('application/json') === true;
          const json: unknown = isJson ? JSON.parse(text) : undefined;
          resolve({ status: answer.statusCode ?? 0, json });
        });
      },
    );
    asked.on('error', () => resolve(undefined));
    asked.end();
  });
}

const filtered = (filters: Readonly<Record<string, readonly string[]>>): string =>
  `filters=${encodeURIComponent(JSON.stringify(filters))}`;

/**
 * testcontainers has a container (Ryuk) that removes what a killed run leaves. It is an image of its own: one that the engine
 * has is used, and none is pulled. Without it the next run removes what is left.
 */
async function chooseReaper(engine: Engine): Promise<void> {
  if (process.env['RYUK_CONTAINER_IMAGE'] !== undefined) return;
  const path = `/images/json?${filtered({ reference: ['testcontainers/ryuk'] })}`;
  const answer = await call(engine, 'GET', path);
  const images = (answer?.json ?? []) as readonly { readonly RepoTags: readonly string[] | null }[];
  const [tag] = images.flatMap((each) => each.RepoTags ?? []);
  if (tag === undefined) process.env['TESTCONTAINERS_RYUK_DISABLED'] = 'true';
  else process.env['RYUK_CONTAINER_IMAGE'] = tag;
}

/** Removes the containers of test runs of this machine that were killed. */
async function removeAbandoned(engine: Engine): Promise<void> {
  const answer = await call(
    engine,
    'GET',
    `/containers/json?all=true&${filtered({ label: [ownerLabel] })}`,
  );
  const containers = (answer?.json ?? []) as readonly {
    readonly Id: string;
    readonly Labels: Readonly<Record<string, string>>;
  }[];
  for (const { Id, Labels } of containers) {
    const [host, pid] = (Labels[ownerLabel] ?? '').split(':');
    if (host === hostname() && !isAlive(Number(pid)))
      await call(engine, 'DELETE', `/containers/${Id}?force=true&v=true`);
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
