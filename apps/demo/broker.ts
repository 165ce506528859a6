import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { DemoConfig } from '#runtime/config.ts';
import type { BrokerAddress } from './client.ts';

/** A broker to talk to; disposing ends it where the demo has started it. */
export interface Broker extends BrokerAddress, AsyncDisposable {}

export interface BrokerOptions {
  readonly config: DemoConfig;
  /** Of this process, for a broker that is started. */
  readonly env: NodeJS.ProcessEnv;
  readonly signal: AbortSignal;
  readonly say: (line: string) => void;
}

const usualUrl = 'http://127.0.0.1:3000';
const standalone = fileURLToPath(new URL('../standalone/main.ts', import.meta.url));
const startMs = 60_000;
const lookMs = 50;
const stopMs = 30_000;
const outputKept = 4000;

/** The broker of BROKER_URL, else one of `npm start` that is running, else one of its own. */
export async function findBroker(options: BrokerOptions): Promise<Broker> {
  const { config, say } = options;
  const apiKey = config.apiKey ?? (await readKey(config.dataDir));
  const url = config.brokerUrl?.replace(/\/+$/, '');
  if (url !== undefined) {
    if (apiKey === undefined) {
      throw new Error(`BROKER_URL needs an API_KEY: there is none in ${config.dataDir}`);
    }
    say(`broker: ${url}`);
    return { url, apiKey, [Symbol.asyncDispose]: async () => undefined };
  }
  if (apiKey !== undefined && (await isOpenTo({ url: usualUrl, apiKey }))) {
    say(`broker: ${usualUrl}, which is running already`);
    return { url: usualUrl, apiKey, [Symbol.asyncDispose]: async () => undefined };
  }
  return startBroker(options);
}

async function readKey(dataDir: string): Promise<string | undefined> {
  const text = await readFile(join(dataDir, 'api-key'), 'utf8').catch(() => '');
  return text.trim() || undefined;
}

async function isOpenTo({ url, apiKey }: BrokerAddress): Promise<boolean> {
  const headers = { authorization: `Bearer ${apiKey}` };
  const signal = AbortSignal.timeout(2000);
  return fetch(`${url}/api/v1/topics?limit=1`, { headers, signal }).then(
    (response) => response.ok,
    () => false,
  );
}

/** Starts `npm start` with a directory and ports of its own. Ctrl-C on a terminal reaches it by itself. */
async function startBroker({ env, signal, say }: BrokerOptions): Promise<Broker> {
  const dataDir = await mkdtemp(join(tmpdir(), 'event-broker-demo-'));
  const [port, healthPort] = [await freePort(), await freePort()];
  const apiKey = randomBytes(24).toString('hex');
  // a throw-away broker is not to write into a database that somebody has configured
  const { DATABASE_URL: _, DATABASE_URL_FILE: __, DATABASE_DIRECT_URL: ___, ...others } = env;
  const child = spawn(process.execPath, [standalone], {
    env: {
      ...others,
      DATA_DIR: dataDir,
      HOST: '127.0.0.1',
      PORT: String(port),
      HEALTH_PORT: String(healthPort),
      ADMIN_API_KEY: apiKey,
      // the demo's own endpoint
      ALLOW_PRIVATE_TARGETS: '127.0.0.0/8',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = keepOutput(child);
  const stop = async (): Promise<void> => {
    await stopChild(child);
    await rm(dataDir, { recursive: true, force: true, maxRetries: 5 });
  };
  const broker = { url: `http://127.0.0.1:${port}`, apiKey, [Symbol.asyncDispose]: stop };
  try {
    await untilReady(broker, child, signal);
  } catch (error) {
    await stop();
    if (signal.aborted) throw error;
    throw new Error(`No broker could be started:\n${output()}`, { cause: error });
  }
  say(`broker: ${broker.url}, started for the demo with its own PostgreSQL`);
  return broker;
}

/** The last of what a process writes. */
function keepOutput(child: ChildProcess): () => string {
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (piece: string) => {
      text = (text + piece).slice(-outputKept);
    });
  }
  return () => text;
}

async function untilReady(
  broker: BrokerAddress,
  child: ChildProcess,
  signal: AbortSignal,
): Promise<void> {
  const deadline = performance.now() + startMs;
  while (!(await isOpenTo(broker))) {
    if (hasEnded(child)) throw new Error('It ended');
    if (performance.now() > deadline) throw new Error('It was not ready in time');
    await delay(lookMs, undefined, { signal });
  }
}

async function stopChild(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  const force = setTimeout(() => child.kill('SIGKILL'), stopMs);
  await ended;
  clearTimeout(force);
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
