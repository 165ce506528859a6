import type { FastifyInstance } from 'fastify';
import { createDatabase, type Database } from '#db/client.ts';
import { createWakeups } from '#db/wakeups.ts';
import { type ApiConfig, loadApiConfig } from '#runtime/config.ts';
import { createLogger } from '#runtime/logger.ts';
import { createMetrics } from '#runtime/metrics.ts';
import { createAdmission } from '../../apps/api/publish/admission.ts';
import { type AppOptions, buildApp } from '../../apps/api/app.ts';
import { seedConfiguredKey } from '../../apps/api/auth.ts';
import type { AppDependencies } from '../../apps/api/dependencies.ts';
import { Directory } from '../../apps/api/directory.ts';
import { createPublisher } from '../../apps/api/publish/publisher.ts';
import { createReceiver } from '../../apps/api/receive/receiver.ts';
import { createSettler } from '../../apps/api/receive/settler.ts';
import { cloneDatabase } from './database.ts';
import { eventually } from './eventually.ts';
import { asRole } from './roles.ts';

/** What a test looks at. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly text: string;
  /** The body as JSON; of a problem too. */
  // oxlint-disable-next-line typescript/no-explicit-any -- tests read what they expect
  readonly json: any;
}

export interface CallOptions {
  /** Without one the admin's key is sent; null sends none. */
  readonly key?: string | null;
  readonly headers?: Record<string, string>;
}

export interface TestApp extends AsyncDisposable {
  readonly app: FastifyInstance;
  /** `http://127.0.0.1:<port>` */
  readonly address: string;
  /** The test's own look at the database; the replica has its own, with the rights of an API (deps.db). */
  readonly db: Database;
  readonly deps: AppDependencies;
  readonly adminKey: string;
  /** `call('PUT /api/v1/topics/a', {…})`; a string or Buffer is sent as it is. */
  call(route: string, body?: unknown, options?: CallOptions): Promise<Answer>;
  /** Makes a key with these scopes and topics. */
  makeKey(scopes: string[], topics?: string[]): Promise<string>;
}

export interface StartAppOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly config?: Partial<ApiConfig>;
  readonly app?: AppOptions;
  readonly deps?: Partial<AppDependencies>;
}

const adminKey = 'test-admin-key-0123456789';

/** A replica on a database of its own, which goes with it. */
export interface OwnTestApp extends TestApp {
  readonly url: string;
}

/** Clones a database and starts a replica on it. */
export async function startOwnApp(options: StartAppOptions = {}): Promise<OwnTestApp> {
  const database = await cloneDatabase();
  const api = await startApp(database.url, options);
  return {
    ...api,
    url: database.url,
    async [Symbol.asyncDispose]() {
      await api[Symbol.asyncDispose]();
      await database[Symbol.asyncDispose]();
    },
  };
}

/** One API replica on a database, on a port of its own. Two on one database are two replicas. */
export async function startApp(url: string, options: StartAppOptions = {}): Promise<TestApp> {
  const apiUrl = await asRole('api', url);
  const config: ApiConfig = {
    ...loadApiConfig({ DATABASE_URL: apiUrl, NODE_ENV: 'test', ...options.env }),
    ...options.config,
  };
  const applicationName = `broker-api-test-${crypto.randomUUID().slice(0, 8)}`;
  const { statementTimeoutMs } = config;
  const pool = { poolMax: 4, statementTimeoutMs };
  const database = createDatabase({ url: apiUrl, applicationName, ...pool });
  const { db } = database;
  const own = createDatabase({ url, applicationName: 'broker-test', ...pool });
  const metrics = createMetrics({ service: 'api' });
  const level = process.env['TEST_LOG_LEVEL'] ?? 'silent';
  const logger = createLogger({ service: 'api', instance: 'test', level });
  const wakeups = createWakeups({ db, directUrl: apiUrl, applicationName });
  const directory = new Directory(db, wakeups);
  const settler = createSettler({ db, wakeups, metrics });
  const admission = createAdmission({ db, intervalMs: 200 });
  const deps: AppDependencies = {
    config,
    db,
    logger,
    metrics,
    wakeups,
    directory,
    settler,
    admission,
    publisher: createPublisher({
      db,
      wakeups,
      metrics,
      limits: {
        bufferEventsMax: config.publishBufferEventsMax,
        bufferBytesMax: config.publishBufferBytesMax,
      },
    }),
    receiver: createReceiver({
      db,
      wakeups,
      settler,
      metrics,
      limits: { waitingMax: config.receiveWaitingMax, bytesMax: config.receiveBytesMax },
      statementTimeoutMs,
    }),
    isDraining: () => false,
    ...options.deps,
  };
  await seedConfiguredKey(db, adminKey);
  const app = await buildApp(deps, options.app);
  await eventually(() => {
    if (!wakeups.listening) throw new Error('not listening yet');
  });
  const address = await app.listen({ host: '127.0.0.1', port: 0 });
  const call = callerOf(address);
  return {
    app,
    address,
    db: own.db,
    deps,
    adminKey,
    call,
    async makeKey(scopes, topics) {
      const answer = await call('POST /api/v1/api-keys', {
        name: 'test',
        scopes,
        ...(topics && { topics }),
      });
      if (answer.status !== 201) throw new Error(answer.text);
      return answer.json.key as string;
    },
    async [Symbol.asyncDispose]() {
      await deps.receiver.drain();
      await app.close();
      await deps.publisher.drain(AbortSignal.timeout(5000));
      await settler.drain(AbortSignal.timeout(5000));
      await admission.stop();
      directory[Symbol.dispose]();
      await wakeups.close();
      await database.close();
      await own.close();
    },
  };
}

function callerOf(address: string): TestApp['call'] {
  return async (route, body, { key = adminKey, headers = {} } = {}) => {
    const [method, path] = route.split(' ') as [string, string];
    const isRaw = typeof body === 'string' || Buffer.isBuffer(body);
    const response = await fetch(`${address}${path}`, {
      method,
      redirect: 'manual',
      headers: {
        ...(key === null ? {} : { authorization: `Bearer ${key}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: isRaw ? body : JSON.stringify(body) }),
    });
    const text = await response.text();
    const isJson = response.headers.get('content-type')?.includes('json') === true;
    return {
      status: response.status,
      headers: Object.fromEntries(response.headers),
      text,
      json: isJson ? (JSON.parse(text) as unknown) : undefined,
    };
  };
}
