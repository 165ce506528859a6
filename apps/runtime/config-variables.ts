import Type, { type Static } from 'typebox';
import { deploymentVariables } from './config-deployment.ts';
import { traceVariables } from './config-observability.ts';

// The one place where environment variables are named and get their defaults and limits.
// Beside JSON Schema's own keywords: `secret` (may come as NAME_FILE, never shown), `check` (a rule
// of config-parse.ts), `shown` (what .env.example shows where the default is computed or there is
// none), `earlier` (the value that the earlier single-process broker had under the same name).

const databasePool = { minimum: 1, maximum: 100 };
const dayMs = 86_400_000;

const commonVariables = {
  NODE_ENV: Type.Enum(['development', 'production', 'test'], {
    default: 'development',
    description: 'production turns on the rate limit and refuses what is only safe on a laptop.',
  }),
  LOG_LEVEL: Type.Enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'], {
    default: 'info',
    description: 'The least severe log lines that are written.',
  }),
  INSTANCE: Type.String({
    pattern: '^[A-Za-z0-9._-]{1,45}$',
    shown: '<host name>-<process id>',
    description: 'Name of this process in logs, in the database and in /api/status.',
  }),
  HOST: Type.String({
    check: 'host',
    shown: '0.0.0.0',
    description: 'Address to listen on; npm start listens on 127.0.0.1 unless it is set.',
  }),
  DATABASE_URL: Type.String({
    secret: true,
    check: 'postgres-url',
    shown: 'postgres://broker:password@127.0.0.1:5432/broker',
    description:
      'PostgreSQL 15 to 18. Needed by api, worker, reaper and migrate; npm start runs its own without it.',
  }),
  DATABASE_DIRECT_URL: Type.String({
    secret: true,
    check: 'postgres-url',
    shown: 'postgres://broker:password@127.0.0.1:5432/broker',
    description:
      'The same database without a pooler between, for LISTEN and session locks; only needed when DATABASE_URL is a pooler.',
  }),
  DATABASE_POOL_MAX: Type.Integer({
    ...databasePool,
    default: 4,
    description: 'Connections per process; batching does the work of a large pool.',
  }),
  STATEMENT_TIMEOUT_MS: Type.Integer({
    minimum: 100,
    maximum: 600_000,
    default: 5000,
    description: 'The database cancels a statement that runs longer.',
  }),
  SHUTDOWN_TIMEOUT_MS: Type.Integer({
    minimum: 1000,
    maximum: 600_000,
    default: 25_000,
    description: 'Time for draining after SIGTERM; then the process exits with code 1.',
  }),
  METRICS_NAMES_MAX: Type.Integer({
    minimum: 1,
    maximum: 10_000,
    default: 200,
    description:
      'Topics, and subscriptions, that have metrics of their own in a process; those past it share the name other.',
  }),
};

const httpVariables = {
  PORT: Type.Integer({
    minimum: 0,
    maximum: 65_535,
    default: 3000,
    description: 'Port of the API; 0 takes any free one.',
  }),
  ALLOWED_ORIGINS: Type.Array(Type.String({ check: 'origin' }), {
    default: [],
    description: 'Origins that browsers may call from, with commas between (empty: none, no CORS).',
  }),
  TRUST_PROXY: Type.Array(Type.String({ check: 'cidr' }), {
    default: [],
    description:
      'Addresses or CIDR ranges of proxies whose X-Forwarded-For is believed, with commas between (empty: nobody).',
  }),
  ADMIN_API_KEY: Type.String({
    secret: true,
    minLength: 16,
    maxLength: 256,
    check: 'header-text',
    shown: 'at-least-16-characters',
    description:
      'Seeds the first API key, with scope admin. A new value takes the place of the one before, which opens everything for another hour and never comes back.',
  }),
  ENABLE_RATE_LIMIT: Type.Boolean({
    shown: 'false',
    description: 'Limits requests per API key, or per address without one; true in production.',
  }),
  RATE_LIMIT_MAX: Type.Integer({
    minimum: 1,
    maximum: 10_000_000,
    default: 1000,
    description: 'Requests per window, for each API key or address and each API replica.',
  }),
  RATE_LIMIT_WINDOW_MS: Type.Integer({
    minimum: 100,
    maximum: 3_600_000,
    default: 1000,
    description:
      'Length of the window; short, so that a caller over the limit is soon served again.',
  }),
  REQUEST_TIMEOUT_MS: Type.Integer({
    minimum: 1000,
    maximum: 600_000,
    default: 30_000,
    description: 'Time for a client to send its whole request.',
  }),
  KEEP_ALIVE_TIMEOUT_MS: Type.Integer({
    minimum: 1000,
    maximum: 3_600_000,
    default: 75_000,
    description: 'How long an idle connection stays; longer than that of a load balancer in front.',
  }),
};

const limitVariables = {
  QUEUE_MAX_SIZE: Type.Integer({
    minimum: 1,
    maximum: 1_000_000_000,
    default: 100_000,
    earlier: '5000',
    description: "Default of a topic's max_backlog: past it publishes are answered with 503.",
  }),
  PUBLISH_BODY_BYTES_MAX: Type.Integer({
    minimum: 1024,
    maximum: 67_108_864,
    default: 8_388_608,
    description: 'Largest body of a request.',
  }),
  EVENT_BYTES_MAX: Type.Integer({
    minimum: 1024,
    maximum: 262_144,
    default: 262_144,
    description:
      'Largest event. An entry of the queue is cut so that one of these more stays within 1 MiB.',
  }),
  PUBLISH_BUFFER_EVENTS_MAX: Type.Integer({
    minimum: 1000,
    maximum: 10_000_000,
    default: 20_000,
    description: 'Events that one replica holds until their batch is sent; past it 503.',
  }),
  PUBLISH_BUFFER_BYTES_MAX: Type.Integer({
    minimum: 1_048_576,
    maximum: 4_294_967_296,
    default: 67_108_864,
    description: 'The same in bytes.',
  }),
  RECEIVE_WAITING_MAX: Type.Integer({
    minimum: 1,
    maximum: 1_000_000,
    default: 10_000,
    description: 'Receive requests that one replica lets wait at a time; past it 503.',
  }),
  RECEIVE_BYTES_MAX: Type.Integer({
    minimum: 65_536,
    maximum: 67_108_864,
    default: 8_388_608,
    description: 'Bytes of events in one answer to receive; one event always fits.',
  }),
};

const deliveryVariables = {
  VISIBILITY_TIMEOUT_MS: Type.Integer({
    minimum: 1000,
    maximum: dayMs / 2,
    default: 30_000,
    earlier: '30000',
    description: 'Default lease of what was received.',
  }),
  MAX_RETRIES: Type.Integer({
    minimum: 1,
    maximum: 1000,
    default: 10,
    earlier: '10',
    description: 'Default max_attempts: deliveries begun before an event becomes a dead letter.',
  }),
  BASE_BACKOFF_MS: Type.Integer({
    minimum: 1,
    maximum: dayMs,
    default: 1000,
    earlier: '1000',
    description: 'Default wait before the second attempt, with full jitter.',
  }),
  MAX_BACKOFF_MS: Type.Integer({
    minimum: 1,
    maximum: dayMs,
    default: 60_000,
    earlier: '60000',
    description: 'Default longest wait between two attempts.',
  }),
  BACKOFF_MULTIPLIER: Type.Number({
    minimum: 1,
    maximum: 100,
    default: 2,
    earlier: '2',
    description: 'Default factor from one wait to the next.',
  }),
};

const pushVariables = {
  ALLOW_PRIVATE_TARGETS: Type.Array(Type.String({ check: 'target-cidr' }), {
    default: [],
    description:
      'Addresses or CIDR ranges, with commas between, that push may reach although they are private, loopback or otherwise not of the internet; npm start on its own database opens loopback unless it is set.',
  }),
  SECRET_ENCRYPTION_KEY: Type.String({
    secret: true,
    check: 'encryption-keys',
    shown: 'the-output-of-openssl-rand-base64-32',
    description:
      'Encrypts the signing secrets of push subscriptions in the database; without one the owner role, superusers and members of pg_read_all_data can read them there. The same for api and worker. Several with commas between while one takes the place of another: the first seals, all open; migrate, where it has them too, seals with the first what is kept otherwise.',
  }),
};

const workerVariables = {
  WORKER_COUNT: Type.Integer({
    minimum: 1,
    maximum: 100_000,
    default: 128,
    earlier: '8',
    description:
      'Push deliveries in flight per worker; one subscription gets three quarters of them at most.',
  }),
  WORKER_BUFFER_BYTES_MAX: Type.Integer({
    minimum: 1_048_576,
    maximum: 4_294_967_296,
    default: 67_108_864,
    description: 'Bytes of events that one worker holds, in flight and waiting for their turn.',
  }),
};

const healthVariables = {
  HEALTH_PORT: Type.Integer({
    minimum: 0,
    maximum: 65_535,
    shown: '9401',
    description:
      "Port of a worker's (9401) or a reaper's (9402) own health and metrics; 0 takes any free one.",
  }),
};

const reaperVariables = {
  REAPER_INTERVAL_MS: Type.Integer({
    minimum: 10,
    maximum: 60_000,
    default: 1000,
    earlier: '1000',
    description: 'How often leases that ran out are looked for.',
  }),
};

const dataVariables = {
  DATA_DIR: Type.String({
    minLength: 1,
    default: './data',
    description: 'Where npm start keeps its own PostgreSQL and the development API key.',
  }),
};

const demoVariables = {
  BROKER_URL: Type.String({
    check: 'http-url',
    shown: 'http://127.0.0.1:3000',
    description: 'A broker that runs already; without it npm run demo starts one.',
  }),
  API_KEY: Type.String({
    secret: true,
    check: 'header-text',
    shown: 'the-key-that-npm-start-printed',
    description: 'The key for BROKER_URL; without it npm run demo takes the one in DATA_DIR.',
  }),
};

/** Groups in the order of `.env.example`, with their headings. */
export const variableGroups = {
  'Every process': commonVariables,
  'HTTP (api)': httpVariables,
  'Limits (api)': limitVariables,
  'Delivery: defaults of new subscriptions (api)': deliveryVariables,
  'Push (api and worker)': pushVariables,
  Worker: workerVariables,
  'Worker and reaper': healthVariables,
  Reaper: reaperVariables,
  'Traces (api, worker, reaper, migrate)': traceVariables,
  'npm start': dataVariables,
  'npm run demo, smoke test': demoVariables,
  'docker-compose.prod.yml and deploy/swarm': deploymentVariables,
};

export const variables = {
  ...commonVariables,
  ...httpVariables,
  ...limitVariables,
  ...deliveryVariables,
  ...pushVariables,
  ...workerVariables,
  ...healthVariables,
  ...reaperVariables,
  ...traceVariables,
  ...dataVariables,
  ...demoVariables,
  ...deploymentVariables,
};

export type VariableName = keyof typeof variables;

export type VariableValue<Name extends VariableName> = Static<(typeof variables)[Name]>;

/** JSON Schema keywords of a variable as they are found at run time. */
export type VariableSchema = {
  readonly type?: string;
  readonly enum?: readonly string[];
  readonly items?: VariableSchema;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly pattern?: string;
  readonly default?: unknown;
  readonly description?: string;
  readonly secret?: true;
  readonly check?:
    | 'host'
    | 'postgres-url'
    | 'http-url'
    | 'origin'
    | 'cidr'
    | 'target-cidr'
    | 'header-text'
    | 'encryption-keys'
    | 'key-values';
  readonly shown?: string;
  readonly earlier?: string;
};

export const variableNames = Object.keys(variables) as VariableName[];

export const demoOnlyNames = Object.keys(demoVariables) as VariableName[];

/** The schema of a variable, with our own keywords. */
export function schemaOf(name: VariableName): VariableSchema {
  return variables[name] as VariableSchema;
}
