import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  ConfigError,
  loadApiConfig,
  loadDemoConfig,
  loadMigrateConfig,
  loadReaperConfig,
  loadStandaloneConfig,
  loadWorkerConfig,
} from '#runtime/config.ts';
import { schemaOf, variableNames } from '#runtime/config-variables.ts';

const database = { DATABASE_URL: 'postgres://broker:s3cret@db/broker' };
const folder = mkdtempSync(join(tmpdir(), 'config-'));
afterAll(() => rmSync(folder, { recursive: true }));

function faultsOf(run: () => unknown): readonly string[] {
  try {
    run();
  } catch (error) {
    if (error instanceof ConfigError) return error.faults;
    throw error;
  }
  return [];
}

const apiFaults = (env: Record<string, string>): readonly string[] =>
  faultsOf(() => loadApiConfig({ ...database, ...env }));

describe('values', () => {
  test('defaults are there, typed, in camel case and frozen', () => {
    const config = loadApiConfig(database);
    expect(config).toMatchObject({
      nodeEnv: 'development',
      databaseUrl: database.DATABASE_URL,
      databaseDirectUrl: undefined,
      host: '0.0.0.0',
      port: 3000,
      allowedOrigins: [],
      trustProxy: [],
      enableRateLimit: false,
      maxRetries: 10,
      backoffMultiplier: 2,
      shutdownTimeoutMs: 25_000,
    });
    expect(config.instance).toMatch(/^[A-Za-z0-9._-]+-\d+$/);
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.allowedOrigins)).toBe(true);
  });

  test('each process gets its own variables and no others', () => {
    expect(loadReaperConfig(database)).toMatchObject({ healthPort: 9402, reaperIntervalMs: 1000 });
    expect(loadReaperConfig(database)).not.toHaveProperty('port');
    expect(loadMigrateConfig(database)).not.toHaveProperty('host');
    const standalone = loadStandaloneConfig({ WORKER_COUNT: '8' });
    expect(standalone).toMatchObject({ host: '127.0.0.1', dataDir: './data', workerCount: 8 });
    expect(standalone.databaseUrl).toBeUndefined();
    expect(loadDemoConfig({ BROKER_URL: 'http://b:1', API_KEY: 'k' })).toMatchObject({
      brokerUrl: 'http://b:1',
      apiKey: 'k',
      dataDir: './data',
    });
  });

  test('the rate limit is on in production unless it is switched off', () => {
    const production = { ...database, NODE_ENV: 'production' };
    expect(loadApiConfig(production).enableRateLimit).toBe(true);
    expect(loadApiConfig({ ...production, ENABLE_RATE_LIMIT: '0' }).enableRateLimit).toBe(false);
  });

  test('lists are split at commas, and empty is an empty list', () => {
    const config = loadApiConfig({
      ...database,
      ALLOWED_ORIGINS: 'https://a.example, http://localhost:8080',
      TRUST_PROXY: '10.0.0.0/8,::1',
    });
    expect(config.allowedOrigins).toEqual(['https://a.example', 'http://localhost:8080']);
    expect(config.trustProxy).toEqual(['10.0.0.0/8', '::1']);
    expect(loadApiConfig({ ...database, ALLOWED_ORIGINS: '' }).allowedOrigins).toEqual([]);
  });
});

describe('every variable', () => {
  test('takes its own default as a text, and the value of the earlier broker', () => {
    for (const key of ['default', 'earlier'] as const) {
      const env: Record<string, string> = { ...database };
      for (const name of variableNames) {
        const value = schemaOf(name)[key];
        if (value !== undefined) env[name] = Array.isArray(value) ? '' : String(value as string);
      }
      expect(faultsOf(() => loadStandaloneConfig(env))).toEqual([]);
    }
  });
});

describe('faults', () => {
  test('all are reported at once, each by the name of its variable', () => {
    const faults = faultsOf(() =>
      loadApiConfig({ PORT: 'x', LOG_LEVEL: 'loud', MAX_RETRIES: '0' }),
    );
    expect(faults.map((fault) => fault.split(':')[0])).toEqual([
      'LOG_LEVEL',
      'DATABASE_URL',
      'PORT',
      'MAX_RETRIES',
    ]);
  });

  test.each([
    ['PORT', '1e3', 'must be a whole number from 0 to 65535 in plain digits, got "1e3"'],
    ['PORT', '65536', 'must be a whole number from 0 to 65535 in plain digits, got "65536"'],
    ['PORT', '', 'is set but empty; leave it out to get the default 3000'],
    ['PORT', ' 80', 'must be a whole number'],
    ['PORT', '80.0', 'must be a whole number'],
    ['MAX_RETRIES', '-1', 'must be a whole number from 1 to 1000'],
    ['QUEUE_MAX_SIZE', '9'.repeat(40), 'must be a whole number'],
    ['VISIBILITY_TIMEOUT_MS', '30s', 'without a unit (it counts milliseconds), got "30s"'],
    ['EVENT_BYTES_MAX', '256KiB', 'without a unit (it counts bytes)'],
    ['BACKOFF_MULTIPLIER', '1,5', 'must be a number from 1 to 100'],
    ['ENABLE_RATE_LIMIT', 'yes', 'must be true, false, 1 or 0, got "yes"'],
    ['NODE_ENV', 'prod', 'must be one of development, production, test'],
    ['ALLOWED_ORIGINS', 'https://a.example/', 'each must be an origin'],
    ['ALLOWED_ORIGINS', 'a.example', 'must be a URL that begins with http:// or https://'],
    ['TRUST_PROXY', '1', 'a number of hops can be forged by the client'],
    ['TRUST_PROXY', 'true', 'must be addresses or CIDR ranges'],
    ['TRUST_PROXY', '10.0.0.0/33', 'must be addresses or CIDR ranges'],
    ['TRUST_PROXY', '0.0.0.0/0', 'must not cover every address'],
    ['INSTANCE', 'a b', 'must match'],
    ['HOST', 'http://x', 'must be an address or a host name'],
    ['ADMIN_API_KEY', 'short', 'must have at least 16 characters'],
  ])('%s=%s is refused: %s', (name, value, expected) => {
    const faults = apiFaults({ [name]: value });
    expect(faults).toHaveLength(1);
    expect(faults[0]).toMatch(new RegExp(`^${name}: `));
    expect(faults[0]).toContain(expected);
  });

  test('a fault of a secret does not show it', () => {
    const faults = apiFaults({
      DATABASE_URL: 'mysql://u:hunter2@db/x',
      DATABASE_DIRECT_URL: 'postgres://u:hunter2@db:port/x',
      ADMIN_API_KEY: 'hunter2 hunter2 hunter2',
    });
    expect(faults).toHaveLength(3);
    expect(faults.join()).not.toContain('hunter2');
  });

  test('a wrong value of another process in the same environment is a fault too', () => {
    expect(faultsOf(() => loadReaperConfig({ ...database, PORT: 'x' }))).toHaveLength(1);
    // The demo's names are common ones: only the demo looks at them.
    expect(apiFaults({ BROKER_URL: 'amqp://other' })).toEqual([]);
    expect(faultsOf(() => loadDemoConfig({ BROKER_URL: 'amqp://other' }))).toHaveLength(1);
  });
});

describe('SECRET_ENCRYPTION_KEY', () => {
  const keys = Array.from({ length: 9 }, (_, n) => Buffer.alloc(32, n).toString('base64'));

  test('is one key, or several with commas between, for api, worker and migrate', () => {
    for (const text of [keys[0]!, keys.slice(0, 8).join(','), `${keys[1]}, ${keys[0]}`]) {
      const env = { ...database, SECRET_ENCRYPTION_KEY: text };
      expect(loadApiConfig(env).secretEncryptionKey).toBe(text);
      expect(loadWorkerConfig(env).secretEncryptionKey).toBe(text);
      expect(loadMigrateConfig(env).secretEncryptionKey).toBe(text);
    }
  });

  test.each([
    ['hunter2', 'must be 32 random bytes in base64'],
    [`${keys[0]},hunter2`, 'must be 32 random bytes in base64'],
    [`${keys[0]},`, 'must be 32 random bytes in base64'],
    [`${keys[0]} ${keys[1]}`, 'must be 32 random bytes in base64'],
    [keys.join(','), 'must be 8 keys at most'],
    [`${keys[0]},${keys[1]},${keys[0]}`, 'has the same key twice'],
    // the same bytes, written in another way
    [`${keys[0]},${keys[0]!.replace('A=', 'B=')}`, 'has the same key twice'],
  ])('%s is refused', (text, expected) => {
    const faults = apiFaults({ SECRET_ENCRYPTION_KEY: text });
    expect(faults).toHaveLength(1);
    expect(faults[0]).toContain(`SECRET_ENCRYPTION_KEY: ${expected}`);
    expect(faults[0]).not.toMatch(/hunter2|AAAA/);
  });
});

describe('risky pairs', () => {
  test.each([
    [{ BASE_BACKOFF_MS: '5000', MAX_BACKOFF_MS: '1000' }, 'BASE_BACKOFF_MS', 'MAX_BACKOFF_MS'],
    [
      { EVENT_BYTES_MAX: '262144', PUBLISH_BODY_BYTES_MAX: '1024' },
      'EVENT_BYTES_MAX',
      'PUBLISH_BODY_BYTES_MAX',
    ],
    [{ PUBLISH_BUFFER_BYTES_MAX: '1048576' }, 'PUBLISH_BODY_BYTES_MAX', 'PUBLISH_BUFFER_BYTES_MAX'],
    [{ REAPER_INTERVAL_MS: '40000' }, 'REAPER_INTERVAL_MS', 'VISIBILITY_TIMEOUT_MS'],
    [{ STATEMENT_TIMEOUT_MS: '30000' }, 'STATEMENT_TIMEOUT_MS', 'SHUTDOWN_TIMEOUT_MS'],
    [{ NODE_ENV: 'production', ALLOWED_ORIGINS: '*' }, 'ALLOWED_ORIGINS', 'production'],
    [{ ALLOWED_ORIGINS: '*,https://a.example' }, 'ALLOWED_ORIGINS', 'alone'],
  ] as [Record<string, string>, string, string][])('%o is refused', (env, name, other) => {
    const faults = apiFaults(env);
    expect(faults).toHaveLength(1);
    expect(faults[0]).toMatch(new RegExp(`^${name}: .*${other}`));
  });

  test('of npm start: one port for two servers, a direct URL alone', () => {
    const faults = faultsOf(() =>
      loadStandaloneConfig({
        PORT: '9402',
        DATABASE_DIRECT_URL: 'postgres://u:p@db/x',
      }),
    );
    expect(faults).toEqual([
      'DATABASE_DIRECT_URL: is set without DATABASE_URL',
      'HEALTH_PORT: 9402 is also PORT',
    ]);
    expect(loadStandaloneConfig({ PORT: '0', HEALTH_PORT: '0' }).healthPort).toBe(0);
  });
});

describe('secrets in files', () => {
  test('a file gives the value, less its last line break', () => {
    const path = join(folder, 'key');
    writeFileSync(path, '0123456789abcdef\n');
    const config = loadApiConfig({ ...database, ADMIN_API_KEY_FILE: path });
    expect(config.adminApiKey).toBe('0123456789abcdef');
  });

  test('a database URL may come from a file alone', () => {
    const path = join(folder, 'url');
    writeFileSync(path, database.DATABASE_URL);
    expect(loadReaperConfig({ DATABASE_URL_FILE: path }).databaseUrl).toBe(database.DATABASE_URL);
  });

  test('both set, and a file that cannot be read, are faults by name', () => {
    const path = join(folder, 'absent');
    expect(apiFaults({ DATABASE_URL_FILE: path })[0]).toMatch(/^DATABASE_URL: also set as/);
    const [fault] = apiFaults({ ADMIN_API_KEY_FILE: path });
    expect(fault).toBe(`ADMIN_API_KEY_FILE: cannot read ${JSON.stringify(path)} (ENOENT)`);
  });

  test('a file of a secret that this process does not use is not read', () => {
    const env = { ...database, ADMIN_API_KEY_FILE: join(folder, 'absent') };
    expect(faultsOf(() => loadReaperConfig(env))).toEqual([]);
  });
});

describe('misspellings', () => {
  test.each([
    ['DATABSE_URL', 'DATABASE_URL'],
    ['DATABASEURL', 'DATABASE_URL'],
    ['database_url', 'DATABASE_URL'],
    ['DATABASE_URL_FIEL', 'DATABASE_URL_FILE'],
    ['VISIBLITY_TIMEOUT_MS', 'VISIBILITY_TIMEOUT_MS'],
    ['VISIBILITY_TIMEOUT', 'VISIBILITY_TIMEOUT_MS'],
    ['VISIBILITY_TIMEOUT_SECONDS', 'VISIBILITY_TIMEOUT_MS'],
    ['MAX_RETRYS', 'MAX_RETRIES'],
    ['ALLOWED_ORIGIN', 'ALLOWED_ORIGINS'],
    ['PROT', 'PORT'],
    ['LOGLEVEL', 'LOG_LEVEL'],
    ['ADMIN_APIKEY', 'ADMIN_API_KEY'],
    ['DATA_DRI', 'DATA_DIR'],
  ])('%s is refused: did you mean %s?', (name, meant) => {
    expect(apiFaults({ [name]: '1' })).toEqual([`${name}: is not known; did you mean ${meant}?`]);
  });

  test('what other programs set is left alone', () => {
    const names = [
      'HOME HOSTNAME HOSTTYPE HOST_PROC HOST_IP PORTAL PORTS_OPEN PATH PWD USER SHELL LANG TERM',
      'POST SORT APP_KEY OPENAI_API_KEY NODE_OPTIONS NODE_PATH XDG_DATA_DIRS DATA_ROOT EDITOR',
      'npm_config_loglevel npm_package_version TEST_DATABASE_URL PGHOST PGPORT PGDATABASE',
      'DATABASE_PORT DATABASE_PORT_5432_TCP API_PORT API_SERVICE_HOST LOG_FORMAT LOGNAME',
      'POSTGRES_PASSWORD COMPOSE_PROJECT_NAME CI TZ http_proxy NO_PROXY WORKERS INSTANCE_ID',
    ].join(' ');
    const env = Object.fromEntries(names.split(' ').map((name) => [name, 'x']));
    expect(apiFaults(env)).toEqual([]);
  });
});
