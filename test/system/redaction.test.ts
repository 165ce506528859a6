// Goal: no secret and no payload gets out with what processes say. Method: each is planted in running processes, at the lowest log
// level; these then meet with all kinds of failures, and crash; and everything that they have written, and answered when they
// refused, is searched.
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BrokerProcess, type Service } from '../support/cluster.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import type { PushEndpoint } from '../support/push-receiver.ts';
import { PushStage } from '../support/push-stage.ts';
import { asRole } from '../support/roles.ts';

const resources = new AsyncDisposableStack();
const planted = new Map<string, string>();
/** What is searched, by where it was said. */
const said: [string, string][] = [];
let stage: PushStage;
let endpoint: PushEndpoint;
let databaseUrl: string;

/** A secret that is in no text by chance. */
function plant(name: string, secret = `planted-${randomBytes(9).toString('hex')}`): string {
  planted.set(name, secret);
  return secret;
}

const payload = plant('payload');
const idempotencyKey = plant('idempotency key');
const headerSecret = plant('header of an endpoint');
const bearerSecret = plant('bearer key of an endpoint');
const querySecret = plant('query of an endpoint');
const encryptionKey = plant('SECRET_ENCRYPTION_KEY', randomBytes(32).toString('base64'));
const wrongKey = plant('wrong API key');
const wrongPassword = plant('wrong password of the database');
const stolen = plant('key in a wrong place');

beforeAll(async () => {
  ({ url: databaseUrl } = resources.use(await cloneDatabase()));
  stage = resources.use(
    await PushStage.start({
      databaseUrl,
      workers: 1,
      env: { LOG_LEVEL: 'trace', SECRET_ENCRYPTION_KEY: encryptionKey },
    }),
  );
  plant('ADMIN_API_KEY', stage.cluster.adminKey);
  plant('password of the database', new URL(await asRole('api', databaseUrl)).password);
  plant('password of the database of the owner', new URL(databaseUrl).password);
  await plantInBroker();
});
afterAll(async () => resources.disposeAsync());

async function plantInBroker(): Promise<void> {
  const { http, api } = stage;
  endpoint = stage.receiver.endpoint(`/planted?token=${querySecret}`, {
    // an endpoint that tells everything that it was sent
    behaviour: () => ({
      status: 500,
      body: JSON.stringify({ payload, headerSecret, bearerSecret }),
    }),
  });
  await http.call(`${api}/topics/planted-topic`, { method: 'PUT', body: {} });
  const made = await http.call(`${api}/subscriptions/planted-push`, {
    method: 'PUT',
    body: {
      topic: 'planted-topic',
      type: 'push',
      retry_policy: { max_attempts: 3, minimum_backoff_ms: 1, maximum_backoff_ms: 1 },
      push: {
        endpoint: endpoint.url,
        headers: { Authorization: `Bearer ${bearerSecret}`, 'X-Hook-Token': headerSecret },
      },
    },
  });
  const { secret } = (made as { push: { secret: string } }).push;
  plant('signing secret', secret);
  plant('signing secret without its prefix', secret.replace('whsec_', ''));
  const key = await http.call(`${api}/api-keys`, {
    body: { name: 'planted', scopes: ['publish'] },
  });
  plant('API key', (key as { key: string }).key);
}

/** Asks, and keeps the answer for the search if it refuses. */
async function ask(
  path: string,
  options: { method?: string; body?: unknown; headers?: Record<string, string> } = {},
): Promise<number> {
  const url = path.startsWith('/v1') ? stage.api.replace('/v1', path) : `${stage.api}${path}`;
  const answer = await stage.http.send(url, options);
  if (answer.status >= 400) said.push([`${answer.status} ${path}`, answer.text]);
  return answer.status;
}

const events = '/topics/planted-topic/events';
const event = (more: object = {}): object => ({ type: 'planted', data: { payload }, ...more });

/** The output of a process of its own that ends, or is ended when it has said something. */
async function outputOf(
  name: string,
  env: Readonly<Record<string, string>>,
  { service = 'api', until }: { service?: Service; until?: string } = {},
): Promise<string> {
  const deaths: string[] = [];
  const options = { service, name, env: { NODE_ENV: 'test', INSTANCE: 'planted', ...env } };
  const broker = new BrokerProcess(options, (death) => void deaths.push(death));
  const text = (): string =>
    [...broker.logs.map((line) => JSON.stringify(line)), ...broker.stray].join('\n');
  await broker.start();
  if (until !== undefined) {
    await eventually(() => expect(text()).toContain(until), { timeoutMs: 20_000, what: until });
    await broker.kill();
  }
  await broker.exited;
  said.push([name, text()]);
  return text();
}

const validEnv = async (service: 'api' | 'worker' = 'api') => ({
  DATABASE_URL: await asRole(service, databaseUrl),
  ADMIN_API_KEY: stage.cluster.adminKey,
  SECRET_ENCRYPTION_KEY: encryptionKey,
});

describe('requests that are refused', () => {
  test('for their key', async () => {
    const basic = Buffer.from(`x:${wrongKey}`).toString('base64');
    for (const authorization of [
      `Bearer ${wrongKey}`,
      `Basic ${basic}`,
      wrongKey,
      `Bearer ${wrongKey} x`,
    ]) {
      expect(await ask('/topics', { headers: { authorization } })).toBe(401);
    }
    for (const accept of ['text/html', '*/*']) {
      const headers = { authorization: `Basic ${basic}`, accept };
      expect(await ask('/v1/../status', { headers })).toBe(401);
    }
    expect(await ask(`/nowhere?api_key=${stolen}`)).toBe(404);
  });

  test('for what they bring', async () => {
    const headers = { 'idempotency-key': `"${idempotencyKey}"` };
    expect(await ask(events, { body: event(), headers })).toBe(202);
    expect(await ask(events, { body: event({ subject: 'other' }), headers })).toBe(422);
    for (const body of [
      `{"type": "planted", "data": {"payload": "${payload}"`,
      `{"type": "planted", "data": "${payload}\\u0000"}`,
      event({ id: payload.repeat(100) }),
      event({ data_base64: payload }),
      event({ unknown: payload }),
      [event(), event({ type: { payload } })],
      `${'['.repeat(200)}"${payload}"${']'.repeat(200)}`,
    ]) {
      const status = await ask(events, { body });
      expect(status).toBeGreaterThanOrEqual(400);
      expect(status).toBeLessThan(500);
    }
    const long = { ...headers, 'idempotency-key': `"${idempotencyKey.repeat(20)}"` };
    expect(await ask(events, { body: event(), headers: long })).toBeGreaterThanOrEqual(400);
    expect(await ask(events, { body: payload, headers: { 'content-type': 'text/plain' } })).toBe(
      415,
    );
    for (const push of [
      { endpoint: `http://user:${headerSecret}@127.0.0.1:1/` },
      { endpoint: `ftp://127.0.0.1/?token=${querySecret}` },
      { endpoint: endpoint.url, headers: { 'x-hook-token': `${headerSecret}\n` } },
      { endpoint: endpoint.url, headers: { 'bad name': headerSecret } },
    ]) {
      const body = { topic: 'planted-topic', type: 'push', push };
      expect(await ask('/subscriptions/other', { method: 'PUT', body })).toBe(422);
    }
  });
});

describe('failures', () => {
  test('of the database that quote the row', async () => {
    // the server's message quotes all of it
    await stage.sql(`alter table broker.event add constraint no_poison check (type <> 'poison')`);
    expect(await ask(events, { body: event({ type: 'poison' }) })).toBe(500);
    await stage.sql(`alter table broker.event drop constraint no_poison`);
    await stage.sql(`create function broker.shout() returns trigger language plpgsql as $$
      begin raise exception using message = 'no', detail = new.data::text, hint = 'none', errcode = '22000'; end $$`);
    await stage.sql(
      `create trigger shout before insert on broker.event for each row execute function broker.shout()`,
    );
    expect(await ask(events, { body: event() })).toBe(500);
    await stage.sql(`drop trigger shout on broker.event`);
    await stage.sql(`alter table broker.idempotency_key rename to elsewhere`);
    const headers = { 'idempotency-key': `"${idempotencyKey}-2"` };
    expect(await ask(events, { body: event(), headers })).toBe(500);
    await stage.sql(`alter table broker.elsewhere rename to idempotency_key`);
  });

  test('of connections that are cut', async () => {
    await stage.sql(`select pg_terminate_backend(pid) from pg_stat_activity
      where application_name ~ '^broker-(api|worker|reaper)'`);
    await eventually(async () => expect(await ask(events, { body: event() })).toBe(202));
  });

  test('of an endpoint that says what it was sent', async () => {
    const failed = () =>
      stage.cluster.workers[0]!.logs.some(
        (line) => line.msg === 'attempt' && line['subscription'] === 'planted-push',
      );
    await ask(events, { body: event() });
    await eventually(() => expect(failed()).toBe(true));
    const seen = endpoint.requests[0]!;
    // it was sent: this test would see it
    expect(seen.headers['authorization']).toBe(`Bearer ${bearerSecret}`);
    expect(seen.body).toContain(payload);
    endpoint.behaviour = 'drop';
    await ask(events, { body: event() });
    await eventually(() => expect(endpoint.requests.at(-1)?.state).toBe('broken'));
  });

  test('of the key that opens signing secrets', async () => {
    const other = plant('another SECRET_ENCRYPTION_KEY', randomBytes(32).toString('base64'));
    await ask(events, { body: event() });
    const env = { ...(await validEnv('worker')), SECRET_ENCRYPTION_KEY: other };
    const private_ = { ALLOW_PRIVATE_TARGETS: '127.0.0.0/8', LOG_LEVEL: 'trace' };
    await stage.cluster.workers[0]!.stop();
    const until = 'its signing secret cannot be opened';
    await outputOf('other-key', { ...env, ...private_ }, { service: 'worker', until });
    await stage.cluster.workers[0]!.start();
  });
});

describe('processes that cannot work', () => {
  test('for their configuration', async () => {
    const env = await validEnv();
    const wrong = plant('wrong value of a secret');
    for (const [name, value] of [
      ['DATABASE_DIRECT_URL', `mysql://broker:${wrong}@127.0.0.1/broker`],
      ['DATABASE_DIRECT_URL', `postgres://broker:${wrong}/@127.0.0.1:x/broker`],
      ['ADMIN_API_KEY', `${wrong} ${wrong}`],
      ['ADMIN_API_KEY_', wrong],
      ['ADMIN_APIKEY', wrong],
      ['SECRET_ENCRYPTION_KEY', wrong],
    ] as const) {
      const text = await outputOf(`wrong ${name}`, { ...env, [name]: value });
      expect(text).toContain(name);
    }
  });

  test('for the password of the database', async () => {
    const url = new URL(await asRole('api', databaseUrl));
    url.password = wrongPassword;
    const env = { ...(await validEnv()), DATABASE_DIRECT_URL: url.href, LOG_LEVEL: 'trace' };
    await outputOf('wrong password', env, { until: 'password authentication failed' });
  });

  test('for the port', async () => {
    const { port } = new URL(stage.api);
    const text = await outputOf('wrong port', { ...(await validEnv()), PORT: port });
    expect(text).toContain(`port ${port} on 127.0.0.1 is already in use`);
  });
});

describe('crashes', () => {
  // From outside, once the process is there: an error that quotes the configuration, with members of its own and a cause.
  const crash = `
    const { DATABASE_URL, ADMIN_API_KEY, SECRET_ENCRYPTION_KEY, PLANTED } = process.env;
    const configuration = JSON.stringify({ DATABASE_URL, ADMIN_API_KEY, SECRET_ENCRYPTION_KEY });
    const error = new Error('cannot go on with ' + configuration, { cause: new Error(DATABASE_URL) });
    Object.assign(error, JSON.parse(PLANTED));
    const timer = setInterval(() => {
      if (process.listenerCount('uncaughtException') === 0) return;
      clearInterval(timer);
      if (error.isRejection) Promise.reject(error);
      else throw error;
    }, 20);`;
  const members = {
    headers: { authorization: `Bearer ${bearerSecret}`, 'x-hook-token': headerSecret },
    idempotency_key: idempotencyKey,
    parameters: [payload],
    detail: payload,
    data: payload,
  };

  test.each([
    ['uncaught exception', false],
    ['unhandled rejection', true],
  ])('%s', async (msg, isRejection) => {
    const file = join(resources.use(await temporaryFolder()).path, 'crash.mjs');
    await writeFile(file, crash);
    for (const service of ['api', 'worker'] as const) {
      const env = {
        ...(await validEnv(service)),
        PLANTED: JSON.stringify({ ...members, isRejection }),
        NODE_OPTIONS: `--import=${file}`,
      };
      const text = await outputOf(`${service}: ${msg}`, env, { service });
      expect([service, text.includes(msg), text.includes('cannot go on with')]).toEqual([
        service,
        true,
        true,
      ]);
    }
  });
});

test('nothing of it was written or answered', async () => {
  for (const each of stage.cluster.all) {
    const { text } = await stage.http.send(`${each.url}/api/metrics`);
    said.push([`metrics of ${each.name}`, text]);
  }
  for (const accept of ['text/html', 'application/json']) {
    const { text } = await stage.http.send(stage.api.replace('/v1', '/status'), {
      headers: { accept },
    });
    said.push([`status as ${accept}`, text]);
  }
  for (const each of stage.cluster.all) {
    const text = [...each.logs.map((line) => JSON.stringify(line)), ...each.stray].join('\n');
    said.push([`output of ${each.name}`, text]);
  }
  // there is something to be found, and the search finds it
  const everything = said.map(([, text]) => text).join('\n');
  for (const known of ['planted-push', 'planted-topic', 'defect', 'uncaught exception']) {
    expect([known, everything.includes(known)]).toEqual([known, true]);
  }
  expect(said.length).toBeGreaterThan(30);
  expect(planted.size).toBeGreaterThan(14);
  const found = said.flatMap(([where, text]) =>
    [...planted].flatMap(([name, secret]) =>
      formsOf(secret).some((form) => text.includes(form))
        ? [`${name} in ${where}: ${excerpt(text, secret)}`]
        : [],
    ),
  );
  expect(found).toEqual([]);
});

async function temporaryFolder() {
  const path = await mkdtemp(join(tmpdir(), 'broker-redaction-'));
  const remove = async (): Promise<void> => rm(path, { recursive: true, force: true });
  return { path, [Symbol.asyncDispose]: remove };
}

function formsOf(secret: string): string[] {
  const bytes = Buffer.from(secret);
  return [secret, encodeURIComponent(secret), bytes.toString('base64'), bytes.toString('hex')];
}

function excerpt(text: string, secret: string): string {
  const at = Math.max(0, text.indexOf(secret));
  return text.slice(Math.max(0, at - 150), at + 20);
}
