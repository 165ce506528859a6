/**
 * Goal: while replicas of the API come, go and die, and while nginx itself is reloaded or told to end, no publish with a key
 * fails, and none is stored twice.
 *
 * Method: the project's nginx in front of real API processes on one database, each on an address of its own (127.0.0.2, .3
 * and .4), found through a name server of the test. Publishers are at work without a pause, over connections that are kept.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { BrokerProcess, freePort } from '#test/support/cluster.ts';
import { cloneDatabase, query } from '#test/support/database.ts';
import { type DnsServer, startDnsServer } from '#test/support/dns-server.ts';
import { eventually } from '#test/support/eventually.ts';
import { HttpClient } from '#test/support/http-client.ts';
import { findNginx, type NginxBinary } from '#test/support/nginx-binary.ts';
import { Nginx, type NginxSettings } from '#test/support/nginx.ts';
import { type PublishLoad, startPublishLoad } from '#test/support/publish-load.ts';

const hosts = ['127.0.0.2', '127.0.0.3', '127.0.0.4'] as const;
const key = 'test-admin-key-behind-nginx';
const resources = new AsyncDisposableStack();
const deaths: string[] = [];
let binary: NginxBinary;
let databaseUrl: string;
let dns: DnsServer;
let port: number;
let apis: Record<(typeof hosts)[number], BrokerProcess>;
let settings: NginxSettings;
let nginx: Nginx;
let client: HttpClient;

beforeAll(async () => {
  const database = resources.use(await cloneDatabase());
  databaseUrl = database.url;
  binary = resources.use(await findNginx());
  dns = resources.use(await startDnsServer('tasks.api'));
  port = await freePort();
  const made = hosts.map((host) => [host, makeApi(host)] as const);
  apis = Object.fromEntries(made) as typeof apis;
  resources.defer(async () => void (await Promise.all(hosts.map(async (host) => kill(host)))));
  await Promise.all(hosts.map(async (host) => start(host)));
  settings = {
    DNS_RESOLVER: dns.address,
    API_PORT: String(port),
    ADMIN_ALLOW: 'all',
    TRUSTED_PROXIES: '127.0.0.1',
    CLIENT_REQUESTS_PER_SECOND: '100000',
    CLIENT_REQUESTS_BURST: '100000',
  };
  dns.set([hosts[0], hosts[1]]);
  nginx = resources.use(await Nginx.start(binary, settings));
  client = resources.use(new HttpClient(key));
  const topic = `${nginx.url}/api/v1/topics/orders`;
  await eventually(async () => client.call(topic, { method: 'PUT', body: {} }));
  for (const name of ['quiet', 'orders']) {
    await client.call(`${nginx.url}/api/v1/topics/${name}`, { method: 'PUT', body: {} });
    const reader = `${nginx.url}/api/v1/subscriptions/${name}-reader`;
    await client.call(reader, { method: 'PUT', body: { topic: name, type: 'pull' } });
  }
});

afterAll(async () => {
  await resources.disposeAsync();
  if (deaths.length > 0) throw new Error(deaths.join('\n'));
});

function makeApi(host: string): BrokerProcess {
  const env = {
    NODE_ENV: 'test',
    DATABASE_URL: databaseUrl,
    ADMIN_API_KEY: key,
    INSTANCE: host,
    HOST: host,
    PORT: String(port),
    TRUST_PROXY: '127.0.0.1',
    // what goes well is only logged here
    LOG_LEVEL: 'debug',
  };
  const onDeath = (message: string): void => void deaths.push(message);
  return new BrokerProcess({ service: 'api', name: host, env }, onDeath);
}

async function start(host: (typeof hosts)[number]): Promise<void> {
  await apis[host].start();
  const url = `http://${host}:${port}/api/health`;
  const look = async (): Promise<void> => {
    const { status } = await fetch(url);
    if (status !== 200) throw new Error(`health is answered with ${status}`);
  };
  await eventually(look, { timeoutMs: 30_000, what: `readiness of ${host}` });
}

async function kill(host: (typeof hosts)[number]): Promise<void> {
  if (apis[host].isRunning) await apis[host].kill('SIGKILL');
}

const eventsUrl = (of = nginx): string => `${of.url}/api/v1/topics/orders/events`;

function startLoad(of = nginx): PublishLoad {
  return startPublishLoad({ url: eventsUrl(of), key });
}

/** Waits until so many more have ended. */
async function acceptMore(load: PublishLoad, count: number): Promise<void> {
  const wanted = load.published.length + count;
  const look = (): void => expect(load.published.length).toBeGreaterThanOrEqual(wanted);
  await eventually(look, { timeoutMs: 30_000, what: `${count} more publishes` });
}

/** Which address answered each of the requests that were logged since. */
async function servedBy(since: number): Promise<Record<string, number>> {
  const served: Record<string, number> = {};
  for (const { upstream } of (await nginx.accessLines()).slice(since)) {
    const address = upstream.split(/[, ]+/).at(-1)?.split(':')[0] ?? '';
    served[address] = (served[address] ?? 0) + 1;
  }
  return served;
}

/** Waits until these addresses serve, and no others. */
async function untilServedBy(load: PublishLoad, addresses: readonly string[]): Promise<void> {
  await eventually(async () => {
    const since = (await nginx.accessLines()).length;
    await acceptMore(load, 50);
    expect(Object.keys(await servedBy(since)).toSorted()).toEqual([...addresses]);
  });
}

/** Nothing failed, and the database has each event once. */
async function expectEachOnce(load: PublishLoad, what: string): Promise<void> {
  const failed = await load.stop();
  const rows = await query<{ n: number; copies: number }>(
    databaseUrl,
    `select (data ->> 'n')::int as n, count(*)::int as copies from broker.event where type = 'load' group by 1`,
  );
  const copies = new Map(rows.map((row) => [row.n, row.copies]));
  const lost = load.published.filter(({ n, status }) => status === 202 && !copies.has(n));
  const doubled = rows.filter((row) => row.copies > 1);
  console.log(
    `${what}: ${load.published.length} sent, ${failed.length} failed, ${lost.length} lost, ${doubled.length} stored twice`,
  );
  expect({ failed, lost, doubled }).toEqual({ failed: [], lost: [], doubled: [] });
}

test('both replicas serve, in turn', async () => {
  const since = (await nginx.accessLines()).length;
  for (let n = 0; n < 60; n += 1) await client.call(eventsUrl(), { body: { type: 'turn' } });
  const served = await servedBy(since);
  expect(Object.keys(served).toSorted()).toEqual([hosts[0], hosts[1]]);
  for (const count of Object.values(served)) expect(count).toBeGreaterThanOrEqual(20);
});

test("request id and client address reach the API's log, trace context its events", async () => {
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  const headers = {
    'x-request-id': 'through-nginx',
    'x-forwarded-for': '198.51.100.7',
    traceparent,
  };
  const answer = await client.send(eventsUrl(), { body: { type: 'a' }, headers });
  expect([answer.status, answer.headers['x-request-id']]).toEqual([202, 'through-nginx']);
  const line = await eventually(() => {
    const all = Object.values(apis).flatMap(({ logs }) => logs);
    const found = all.find((each) => each['request_id'] === 'through-nginx');
    expect(found).toBeDefined();
    return found;
  });
  expect(line?.['ip']).toBe('198.51.100.7');
  const { id } = answer.json as { id: string };
  const rows = await query<{ traceparent: string }>(
    databaseUrl,
    'select traceparent from broker.event where id = $1',
    [id],
  );
  expect(rows[0]?.traceparent).toContain('0af7651916cd43dd8448eb211c80319c');
});

test("the API's own answers come through with each header once, its problems as they are", async () => {
  const { headers: raw } = await fetch(`${nginx.url}/api/v1/topics/none/events`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: '{"type":"a"}',
  });
  for (const name of [
    'strict-transport-security',
    'x-content-type-options',
    'content-security-policy',
    'cache-control',
    'x-request-id',
  ]) {
    // fetch joins what is doubled with a comma
    expect(raw.get(name), name).toMatch(/^[^,]+$/);
  }
  const answer = await client.send(`${nginx.url}/api/v1/topics/none/events`, {
    body: { type: 'a' },
  });
  expect([answer.status, answer.json]).toEqual([
    404,
    expect.objectContaining({ code: 'topic_not_found' }),
  ]);
});

test('a replica that appears is used and one whose name vanishes is not, under load', async () => {
  using load = startLoad();
  await acceptMore(load, 100);
  dns.set([hosts[1], hosts[2]]);
  await untilServedBy(load, [hosts[1], hosts[2]]);
  // as an orderly update does: first the name, then the process
  await apis[hosts[0]].stop();
  await acceptMore(load, 100);
  await start(hosts[0]);
  dns.set(hosts);
  await untilServedBy(load, hosts);
  await expectEachOnce(load, 'names changed');
});

test('replicas are killed under load: no publish with a key fails, and none is stored twice', async () => {
  using load = startLoad();
  for (const host of [...hosts, ...hosts]) {
    await acceptMore(load, 200);
    // its name is still there when it dies, and comes back when it is ready again: as Docker's health checks have it
    await kill(host);
    await acceptMore(load, 200);
    const others = hosts.filter((each) => each !== host);
    dns.set(others);
    await untilServedBy(load, others);
    await start(host);
    dns.set(hosts);
  }
  await expectEachOnce(load, 'six kills');
});

test('clients are told to leave a connection that was idle for longer than nginx keeps it through a reload', async () => {
  const { headers } = await client.send(`${nginx.url}/api/health`);
  // below keepalive_min_timeout
  expect(headers['keep-alive']).toBe('timeout=4');
});

test('reloads under load cost nothing, and a long poll outlasts them', async () => {
  const poll = client.send(`${nginx.url}/api/v1/subscriptions/quiet-reader/receive`, {
    body: { wait_seconds: 8 },
    timeoutMs: 30_000,
  });
  using load = startLoad();
  for (let count = 0; count < 5; count += 1) {
    await acceptMore(load, 150);
    await nginx.reload();
  }
  await acceptMore(load, 150);
  const answer = await poll;
  expect([answer.status, answer.json]).toEqual([200, { messages: [] }]);
  await expectEachOnce(load, 'five reloads');
});

/** Receive requests that the APIs hold. */
async function waitingReceives(): Promise<number> {
  const counts = hosts.map(async (host) => {
    const url = `http://${host}:${port}/api/metrics`;
    const [, count] =
      /^broker_receive_waiting(?:\{.*\})? (\d+)$/m.exec(await (await fetch(url)).text()) ?? [];
    return Number(count);
  });
  return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
}

async function takesConnections(of: number): Promise<boolean> {
  const socket = connect(of, '127.0.0.1');
  socket.on('error', () => undefined);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

test('SIGQUIT ends what is held, takes nothing new, and ends', async () => {
  await using leaving = await Nginx.start(binary, settings);
  const receive = `${leaving.url}/api/v1/subscriptions/quiet-reader/receive`;
  await eventually(async () => client.call(receive, { body: { wait_seconds: 0 } }));
  const poll = client.send(receive, { body: { wait_seconds: 3 } });
  await eventually(async () => expect(await waitingReceives()).toBe(1));
  leaving.signal('SIGQUIT');
  await eventually(async () => expect(await takesConnections(leaving.port)).toBe(false));
  expect((await poll).status).toBe(200);
  expect(await leaving.exited).toEqual({ code: 0, signal: null });
});
