import { hostname } from 'node:os';
import { traceNames } from './config-observability.ts';
import { type Environment, parseText, readText } from './config-parse.ts';
import { findMisspelt } from './config-spelling.ts';
import {
  demoOnlyNames,
  schemaOf,
  type VariableName,
  variableNames,
  type VariableValue,
} from './config-variables.ts';

const commonNames = [
  'NODE_ENV',
  'LOG_LEVEL',
  'INSTANCE',
  'DATABASE_URL',
  'DATABASE_DIRECT_URL',
  'DATABASE_POOL_MAX',
  'STATEMENT_TIMEOUT_MS',
  'SHUTDOWN_TIMEOUT_MS',
  'METRICS_NAMES_MAX',
  ...traceNames,
] as const satisfies VariableName[];

const apiNames = [
  ...commonNames,
  'HOST',
  'PORT',
  'ALLOWED_ORIGINS',
  'TRUST_PROXY',
  'ADMIN_API_KEY',
  'ENABLE_RATE_LIMIT',
  'RATE_LIMIT_MAX',
  'RATE_LIMIT_WINDOW_MS',
  'REQUEST_TIMEOUT_MS',
  'KEEP_ALIVE_TIMEOUT_MS',
  'QUEUE_MAX_SIZE',
  'PUBLISH_BODY_BYTES_MAX',
  'EVENT_BYTES_MAX',
  'PUBLISH_BUFFER_EVENTS_MAX',
  'PUBLISH_BUFFER_BYTES_MAX',
  'RECEIVE_WAITING_MAX',
  'RECEIVE_BYTES_MAX',
  'VISIBILITY_TIMEOUT_MS',
  'MAX_RETRIES',
  'BASE_BACKOFF_MS',
  'MAX_BACKOFF_MS',
  'BACKOFF_MULTIPLIER',
  'ALLOW_PRIVATE_TARGETS',
  'SECRET_ENCRYPTION_KEY',
] as const satisfies VariableName[];

const workerNames = [
  ...commonNames,
  'HOST',
  'HEALTH_PORT',
  'ALLOW_PRIVATE_TARGETS',
  'SECRET_ENCRYPTION_KEY',
  'WORKER_COUNT',
  'WORKER_BUFFER_BYTES_MAX',
] as const satisfies VariableName[];

const migrateNames = [
  ...commonNames,
  'SECRET_ENCRYPTION_KEY',
  'API_REPLICAS',
  'WORKER_REPLICAS',
  'REAPER_REPLICAS',
] as const satisfies VariableName[];

const reaperNames = [
  ...commonNames,
  'HOST',
  'HEALTH_PORT',
  'REAPER_INTERVAL_MS',
] as const satisfies VariableName[];

const standaloneNames = [
  ...apiNames,
  'HEALTH_PORT',
  'WORKER_COUNT',
  'WORKER_BUFFER_BYTES_MAX',
  'REAPER_INTERVAL_MS',
  'DATA_DIR',
] as const satisfies VariableName[];

const smokeNames = [
  'NODE_ENV',
  'LOG_LEVEL',
  'INSTANCE',
  'SHUTDOWN_TIMEOUT_MS',
  ...demoOnlyNames,
] as const satisfies VariableName[];

const demoNames = ['NODE_ENV', 'LOG_LEVEL', 'DATA_DIR', ...demoOnlyNames] as const;

type OptionalName =
  | 'DATABASE_URL'
  | 'DATABASE_DIRECT_URL'
  | 'ADMIN_API_KEY'
  | 'SECRET_ENCRYPTION_KEY'
  | 'API_REPLICAS'
  | 'WORKER_REPLICAS'
  | 'REAPER_REPLICAS'
  | 'OTEL_EXPORTER_OTLP_ENDPOINT'
  | 'OTEL_EXPORTER_OTLP_TRACES_ENDPOINT'
  | 'OTEL_EXPORTER_OTLP_HEADERS'
  | 'OTEL_RESOURCE_ATTRIBUTES'
  | 'BROKER_URL'
  | 'API_KEY';

type CamelCase<Name extends string> = Name extends `${infer Head}_${infer Tail}`
  ? `${Lowercase<Head>}${Capitalize<CamelCase<Tail>>}`
  : Lowercase<Name>;

type Config<Name extends VariableName, Required extends VariableName = never> = {
  readonly [Key in Name as CamelCase<Key>]: Key extends Exclude<OptionalName, Required>
    ? VariableValue<Key> | undefined
    : VariableValue<Key>;
};

export type ApiConfig = Config<(typeof apiNames)[number], 'DATABASE_URL'>;
export type WorkerConfig = Config<(typeof workerNames)[number], 'DATABASE_URL'>;
export type ReaperConfig = Config<(typeof reaperNames)[number], 'DATABASE_URL'>;
export type StandaloneConfig = Config<(typeof standaloneNames)[number]>;
export type MigrateConfig = Config<(typeof migrateNames)[number], 'DATABASE_URL'>;
export type SmokeConfig = Config<(typeof smokeNames)[number], 'BROKER_URL' | 'API_KEY'>;
export type DemoConfig = Config<(typeof demoNames)[number]>;

/** What is wrong with the environment: every fault, each with the name of its variable. */
export class ConfigError extends Error {
  readonly faults: readonly string[];

  constructor(faults: readonly string[]) {
    super(`The configuration is wrong:\n${faults.map((fault) => `  ${fault}`).join('\n')}`);
    this.name = 'ConfigError';
    this.faults = faults;
  }
}

/** Reads the configuration of the API from `env`; throws `ConfigError` with every fault in it. */
export function loadApiConfig(env: Environment): ApiConfig {
  return load(env, { names: apiNames, required: ['DATABASE_URL'], host: '0.0.0.0' }) as ApiConfig;
}

/** Reads the configuration of the worker from `env`; throws `ConfigError` with every fault in it. */
export function loadWorkerConfig(env: Environment): WorkerConfig {
  const config = load(env, {
    names: workerNames,
    required: ['DATABASE_URL'],
    host: '0.0.0.0',
    healthPort: 9401,
  });
  return config as WorkerConfig;
}

/** Reads the configuration of the reaper from `env`; throws `ConfigError` with every fault in it. */
export function loadReaperConfig(env: Environment): ReaperConfig {
  const config = load(env, {
    names: reaperNames,
    required: ['DATABASE_URL'],
    host: '0.0.0.0',
    healthPort: 9402,
  });
  return config as ReaperConfig;
}

/**
 * Reads the configuration of `npm start` (API, worker and reaper in one process, on an own PostgreSQL
 * unless `DATABASE_URL` is set) from `env`; throws `ConfigError` with every fault in it.
 */
export function loadStandaloneConfig(env: Environment): StandaloneConfig {
  const config = load(env, {
    names: standaloneNames,
    required: [],
    host: '127.0.0.1',
    healthPort: 9402,
  });
  return config as StandaloneConfig;
}

/** Reads the configuration of `migrate` from `env`; throws `ConfigError` with every fault in it. */
export function loadMigrateConfig(env: Environment): MigrateConfig {
  const config = load(env, { names: migrateNames, required: ['DATABASE_URL'], host: '0.0.0.0' });
  return config as MigrateConfig;
}

/** Reads the configuration of the smoke test from `env`; throws `ConfigError` with every fault in it. */
export function loadSmokeConfig(env: Environment): SmokeConfig {
  const required = ['BROKER_URL', 'API_KEY'] as const;
  return load(env, { names: smokeNames, required, host: '0.0.0.0' }) as SmokeConfig;
}

/** Reads the configuration of the demo from `env`; throws `ConfigError` with every fault in it. */
export function loadDemoConfig(env: Environment): DemoConfig {
  return load(env, { names: demoNames, required: [], host: '127.0.0.1' }) as DemoConfig;
}

type Process = {
  readonly names: readonly VariableName[];
  readonly required: readonly VariableName[];
  readonly host: string;
  readonly healthPort?: number;
};

// Values are checked for all processes and not only for this one: they usually share one `.env`,
// and a fault in it should stop the first process that sees it. Files of secrets are read, and
// variables of the demo looked at, only by who uses them.
function load(env: Environment, wanted: Process): Readonly<Record<string, unknown>> {
  const faults: string[] = [];
  const values = new Map<VariableName, unknown>();
  for (const name of variableNames) {
    const isWanted = wanted.names.includes(name);
    if (!isWanted && (wanted.names === demoNames || demoOnlyNames.includes(name))) continue;
    const read = isWanted ? readText(env, name) : { text: env[name] };
    const parsed = parseRead(name, read, wanted);
    if ('fault' in parsed) faults.push(parsed.fault);
    else values.set(name, parsed.value);
  }
  fillDefaults(values, wanted);
  if (wanted.names !== demoNames) faults.push(...crossFaults(values, wanted));
  faults.push(...spellingFaults(env));
  if (faults.length > 0) throw new ConfigError(faults);
  return Object.freeze(
    Object.fromEntries(wanted.names.map((name) => [camelCase(name), values.get(name)])),
  );
}

function parseRead(name: VariableName, read: ReturnType<typeof readText>, wanted: Process) {
  if ('fault' in read) return read;
  if (read.text !== undefined) return parseText(name, read.text);
  if (wanted.required.includes(name)) return { fault: `${name}: must be set` };
  const fallback = schemaOf(name).default;
  return { value: Array.isArray(fallback) ? Object.freeze([...fallback]) : fallback };
}

function fillDefaults(values: Map<VariableName, unknown>, wanted: Process): void {
  // Cut to what PostgreSQL keeps of an application_name.
  const host = hostname()
    .replaceAll(/[^A-Za-z0-9._-]/g, '-')
    .slice(0, 30);
  const computed = {
    HOST: wanted.host,
    HEALTH_PORT: wanted.healthPort,
    INSTANCE: `${host}-${process.pid}`,
    ENABLE_RATE_LIMIT: values.get('NODE_ENV') === 'production',
  } satisfies Partial<Record<VariableName, unknown>>;
  for (const [name, value] of Object.entries(computed) as [VariableName, unknown][]) {
    // A key that is absent had a fault of its own.
    if (values.has(name) && values.get(name) === undefined) values.set(name, value);
  }
}

// [the one that must not be larger, the one that it must not exceed, why]
const orderedPairs = [
  ['BASE_BACKOFF_MS', 'MAX_BACKOFF_MS', 'the first wait would be longer than the longest'],
  ['EVENT_BYTES_MAX', 'PUBLISH_BODY_BYTES_MAX', 'such an event could never be published'],
  ['PUBLISH_BODY_BYTES_MAX', 'PUBLISH_BUFFER_BYTES_MAX', 'such a request would always get 503'],
  ['REAPER_INTERVAL_MS', 'VISIBILITY_TIMEOUT_MS', 'leases would end long after they ran out'],
  ['STATEMENT_TIMEOUT_MS', 'SHUTDOWN_TIMEOUT_MS', 'one statement could outlast the shutdown'],
  ['OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 'OTEL_BSP_MAX_QUEUE_SIZE', 'so many are never held'],
] as const satisfies [VariableName, VariableName, string][];

function crossFaults(values: ReadonlyMap<VariableName, unknown>, wanted: Process): string[] {
  const faults: string[] = [];
  for (const [smaller, larger, why] of orderedPairs) {
    const [low, high] = [values.get(smaller), values.get(larger)];
    if (typeof low === 'number' && typeof high === 'number' && low > high) {
      faults.push(`${smaller}: ${low} is more than ${larger}, which is ${high}: ${why}`);
    }
  }
  const origins = values.get('ALLOWED_ORIGINS');
  if (Array.isArray(origins) && origins.includes('*')) {
    if (values.get('NODE_ENV') === 'production') {
      faults.push("ALLOWED_ORIGINS: '*' is refused in production; list the origins");
    } else if (origins.length > 1) faults.push("ALLOWED_ORIGINS: '*' stands alone");
  }
  const isDirectAlone =
    values.get('DATABASE_DIRECT_URL') !== undefined && !values.get('DATABASE_URL');
  if (isDirectAlone && values.has('DATABASE_URL') && !wanted.required.includes('DATABASE_URL')) {
    faults.push('DATABASE_DIRECT_URL: is set without DATABASE_URL');
  }
  const port = values.get('PORT');
  const sharesPort = wanted.names.includes('PORT') && wanted.names.includes('HEALTH_PORT');
  if (sharesPort && typeof port === 'number' && port > 0 && port === values.get('HEALTH_PORT')) {
    faults.push(`HEALTH_PORT: ${port} is also PORT`);
  }
  return faults;
}

function spellingFaults(env: Environment): string[] {
  const secrets = variableNames.filter((name) => schemaOf(name).secret === true);
  const files = secrets.map((name) => `${name}_FILE`);
  const known = [...variableNames, ...files];
  const faults: string[] = [];
  for (const name of Object.keys(env)) {
    if (env[name] === undefined) continue;
    const meant = findMisspelt(name, known);
    if (meant !== undefined) faults.push(`${name}: is not known; did you mean ${meant}?`);
  }
  return faults;
}

/** The member of a configuration that a variable becomes. */
export function camelCase(name: string): string {
  return name.toLowerCase().replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}
