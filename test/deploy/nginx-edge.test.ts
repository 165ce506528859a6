/**
 * Goal: what nginx lets in, what it says itself, and what the API hears of a request.
 *
 * Method: the project's nginx, started by deploy/nginx/start, in front of one server in the API's place that writes down
 * what arrives. The test is the balancer that nginx trusts (127.0.0.1), so each test has a client address of its own.
 */
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { startDnsServer } from '#test/support/dns-server.ts';
import { eventually } from '#test/support/eventually.ts';
import { type Answer, codeOf, HttpClient, type RequestOptions } from '#test/support/http-client.ts';
import { findNginx, type NginxBinary } from '#test/support/nginx-binary.ts';
import { startUpstream, type Upstream } from '#test/support/nginx-upstream.ts';
import { checkNginx, Nginx, type NginxSettings } from '#test/support/nginx.ts';

const resources = new AsyncDisposableStack();
const key = 'a-key-that-no-log-shows';
const events = '/api/v1/topics/orders/events';
const receive = '/api/v1/subscriptions/billing/receive';
let binary: NginxBinary;
let upstream: Upstream;
let settings: NginxSettings;
let nginx: Nginx;
let client: HttpClient;

beforeAll(async () => {
  binary = resources.use(await findNginx());
  upstream = resources.use(
    await startUpstream({
      host: '127.0.0.2',
      act({ url }, response) {
        if (url.startsWith('/api/v1/subscriptions/slow/')) return;
        if (url.startsWith('/api/v1/subscriptions/broken/')) return void response.destroy();
        response.end('{}');
      },
    }),
  );
  const dns = resources.use(await startDnsServer('tasks.api'));
  dns.set(['127.0.0.2']);
  settings = {
    DNS_RESOLVER: dns.address,
    API_PORT: String(upstream.port),
    API_ANSWER_SECONDS: '1',
    API_WAIT_SECONDS: '2',
    TRUSTED_PROXIES: '127.0.0.1',
    ADMIN_ALLOW: '192.0.2.0/24, 2001:db8::/32',
    CLIENT_REQUESTS_PER_SECOND: '10',
    CLIENT_REQUESTS_BURST: '40',
    CLIENT_CONNECTIONS_MAX: '5',
  };
  nginx = resources.use(await Nginx.start(binary, settings));
  client = resources.use(new HttpClient(key));
  await eventually(async () => {
    const { status } = await send('/api/health');
    if (status !== 200) throw new Error(`health is answered with ${status}`);
  });
});

afterAll(async () => {
  await resources.disposeAsync();
});

let lastAddress = 0;

/** Never twice the same. */
function newAddress(): string {
  lastAddress += 1;
  return `198.51.100.${lastAddress}`;
}

async function send(path: string, options: RequestOptions & { ip?: string } = {}): Promise<Answer> {
  const headers = { 'x-forwarded-for': options.ip ?? newAddress(), ...options.headers };
  return client.send(`${nginx.url}${path}`, { ...options, headers });
}

/** The last that came to the API. */
const arrived = () => upstream.arrivals.at(-1);

function expectProblem(answer: Answer, status: number, code: string): void {
  expect([answer.status, codeOf(answer)]).toEqual([status, code]);
  expect(answer.headers['content-type']).toBe('application/problem+json');
  expect(answer.json).toEqual({
    type: `urn:problem-type:event-broker:${code}`,
    title: expect.any(String),
    status,
    instance: expect.stringMatching(/^(\/.*)?$/),
    code,
    request_id: answer.headers['x-request-id'],
  });
}

describe('settings', () => {
  test('the configuration is good, with TLS and without', async () => {
    for (const TLS of ['on', 'off']) {
      const { status, output } = await checkNginx(binary, { ...settings, TLS });
      expect(output).toContain('test is successful');
      expect(output).not.toMatch(/\[(warn|error|alert|emerg)\]/);
      expect(status).toBe(0);
    }
    console.log(`nginx ${binary.version}`);
  });

  test.each([
    ['TLS', 'yes'],
    ['API_NAME', 'api; return 200'],
    ['API_PORT', '0'],
    ['ADMIN_ALLOW', '10.0.0.0/8; allow all'],
    ['TRUSTED_PROXIES', 'balancer'],
    ['CLIENT_REQUESTS_PER_SECOND', '10r'],
    ['ACCESS_LOG', '/tmp/a log'],
  ])('%s=%s is refused by its name', async (name, value) => {
    const { status, output } = await checkNginx(binary, { ...settings, [name]: value });
    expect([status, output]).toEqual([64, expect.stringContaining(name)]);
  });
});

describe('what is refused', () => {
  test('a body over 8 MiB is a 413 problem, one of 8 MiB goes through', async () => {
    const most = 8 * 1024 * 1024;
    expect((await send(events, { body: 'x'.repeat(most) })).status).toBe(200);
    expect(arrived()?.bytes).toBe(most);
    const count = upstream.arrivals.length;
    expectProblem(await send(events, { body: 'x'.repeat(most + 1) }), 413, 'body_too_large');
    expect(upstream.arrivals.length).toBe(count);
  });

  test('headers and paths that are too long are 431 problems', async () => {
    const headers = { 'x-long': 'x'.repeat(9000) };
    expectProblem(await send(events, { headers }), 431, 'headers_too_large');
    expectProblem(await send(`/api/${'x'.repeat(9000)}`), 431, 'headers_too_large');
  });

  test.each([
    'GET /api/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    'GET /api/health HTTP/1.1\r\n\r\n',
    'no request at all\r\n\r\n',
  ])('%j is a 400 problem', async (request) => {
    const socket = connect(nginx.port, '127.0.0.1');
    socket.end(request);
    const answer = await text(socket);
    expect(answer).toMatch(/^HTTP\/1\.1 400 .*\r\nContent-Type: application\/problem\+json\r\n/s);
    expect(answer).toContain('"code":"bad_request"');
  });

  test('more requests than the burst are 429 problems, and another address is served', async () => {
    const ip = newAddress();
    const answers: Answer[] = [];
    for (let count = 0; count < 80; count += 1) answers.push(await send(events, { body: {}, ip }));
    const refused = answers.filter(({ status }) => status !== 200);
    expect(answers.length - refused.length).toBeGreaterThanOrEqual(40);
    expect(refused.length).toBeGreaterThan(0);
    for (const answer of refused) expectProblem(answer, 429, 'rate_limited');
    expect(refused[0]?.headers['retry-after']).toBe('1');
    expect((await send(events, { body: {} })).status).toBe(200);
  });

  test('more requests held at a time than one address may are 429 problems', async () => {
    const ip = newAddress();
    const slow = '/api/v1/subscriptions/slow/receive';
    const answers = await Promise.all(
      Array.from({ length: 8 }, async () => send(slow, { body: {}, ip })),
    );
    const refused = answers.filter(({ status }) => status === 429);
    expect(refused.length).toBe(3);
    for (const answer of refused) expectProblem(answer, 429, 'rate_limited');
  });

  test('an API that does not answer is a 504 problem, one that breaks off a 502 problem', async () => {
    const slow = await send('/api/v1/subscriptions/slow/receive', { body: {} });
    expectProblem(slow, 504, 'upstream_timeout');
    const broken = await send('/api/v1/subscriptions/broken/receive', { body: {} });
    expectProblem(broken, 502, 'upstream_unavailable');
    expect(broken.headers['retry-after']).toBe('1');
  });

  test.each([
    '/api/metrics',
    '/api/metrics?a=b',
    '/api/%6detrics',
    '//api//metrics',
    '/api/v1/../metrics',
  ])('%s is not there', async (path) => {
    const count = upstream.arrivals.length;
    const answer = await send(path);
    expectProblem(answer, 404, 'not_found');
    expect(answer.headers['strict-transport-security']).toBeUndefined();
    expectProblem(await send(path, { method: 'POST', body: {} }), 404, 'not_found');
    expect(upstream.arrivals.length).toBe(count);
  });

  test.each([
    ['GET', '/api/v1/api-keys'],
    ['GET', '/api/v1/log-levels'],
    ['PUT', '/api/v1/log-levels'],
    ['POST', '/api/v1/api-keys'],
    ['DELETE', '/api/v1/api-keys/1'],
    ['GET', '/api/status'],
    ['GET', '/api/v1/jobs/1'],
    ['PUT', '/api/v1/topics/orders'],
    ['DELETE', '/api/v1/topics/orders'],
    ['PUT', '/api/v1/subscriptions/billing'],
    ['PATCH', '/api/v1/subscriptions/billing'],
    ['POST', '/api/v1/subscriptions/billing/pause'],
    ['POST', '/api/v1/subscriptions/billing/dlq/redrive'],
    ['DELETE', '/api/v1/subscriptions/billing/dlq'],
    ['POST', '/api/v1/whatever/comes/later'],
    ['PUT', events],
  ])('%s %s is for the addresses of ADMIN_ALLOW', async (method, path) => {
    const count = upstream.arrivals.length;
    expectProblem(await send(path, { method }), 403, 'address_not_allowed');
    expect(upstream.arrivals.length).toBe(count);
    expect((await send(path, { method, ip: `192.0.2.${(lastAddress += 1)}` })).status).toBe(200);
    expect(arrived()).toMatchObject({ method, url: path });
  });

  test.each([
    ['GET', '/api/v1/topics/orders'],
    ['GET', '/api/v1/subscriptions/billing'],
    ['GET', `${events}/17/deliveries`],
    ['OPTIONS', events],
    ['POST', `${events}?a=%2F`],
    ['POST', receive],
    ['POST', '/api/v1/subscriptions/billing/ack'],
    ['POST', '/api/v1/subscriptions/billing/nack'],
    ['POST', '/api/v1/subscriptions/billing/extend'],
  ])('%s %s is for everybody, as it was sent', async (method, path) => {
    expect((await send(path, { method })).status).toBe(200);
    expect(arrived()).toMatchObject({ method, url: path });
  });
});

describe('what the API hears', () => {
  test('a request id that is harmless is passed on, any other replaced', async () => {
    await send('/api/health', { headers: { 'x-request-id': 'mine.1:2~3-4' } });
    expect(arrived()?.headers['x-request-id']).toBe('mine.1:2~3-4');
    for (const bad of ['with space', '"quoted"', 'x'.repeat(129)]) {
      await send('/api/health', { headers: { 'x-request-id': bad } });
      expect(arrived()?.headers['x-request-id']).toMatch(/^[0-9a-f]{32}$/);
    }
  });

  test('trace context, idempotency key and API key come as they were sent', async () => {
    const headers = {
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      tracestate: 'a=1,b=2',
      'idempotency-key': 'once',
    };
    await send(events, { body: {}, headers });
    expect(arrived()?.headers).toMatchObject({ ...headers, authorization: `Bearer ${key}` });
  });

  test('the address is what the trusted balancer says, and nothing that the client says of itself', async () => {
    const forged = { forwarded: 'for=203.0.113.1', 'x-real-ip': '203.0.113.2' };
    const ip = '203.0.113.3, 198.51.100.250';
    await send('/api/health', { ip, headers: { ...forged, 'x-forwarded-host': 'evil' } });
    const { headers = {} } = arrived() ?? {};
    expect(headers['x-forwarded-for']).toBe('198.51.100.250');
    expect(headers['x-forwarded-proto']).toBe('http');
    for (const name of [...Object.keys(forged), 'x-forwarded-host'])
      expect(headers[name], name).toBeUndefined();
  });

  test('an address that is no trusted balancer is taken as it is', async () => {
    const socket = connect({ port: nginx.port, host: '127.0.0.1', localAddress: '127.0.0.9' });
    const lines = ['GET /api/health HTTP/1.1', 'Host: a', 'X-Forwarded-For: 192.0.2.1'];
    // not ended: nginx gives up a request whose client has closed
    socket.write(`${[...lines, 'Connection: close'].join('\r\n')}\r\n\r\n`);
    await text(socket);
    expect(arrived()?.headers['x-forwarded-for']).toBe('127.0.0.9');
  });
});

describe('access log', () => {
  test('each line is JSON with request id, upstream and times, and no key', async () => {
    const headers = { 'x-request-id': 'in-the-log', 'idempotency-key': 'idem-secret' };
    await send(`${events}?token=${key}`, { body: { data: 'of-the-event' }, headers });
    await send('/api/"quoted"\\path');
    const line = await eventually(async () => {
      const lines = await nginx.accessLines();
      const found = lines.find(({ request_id: id }) => id === 'in-the-log');
      expect(found).toBeDefined();
      return found;
    });
    expect(line).toMatchObject({
      method: 'POST',
      path: events,
      status: 200,
      ip: `198.51.100.${lastAddress - 1}`,
      handling: '@publish_with_key',
      upstream: `127.0.0.2:${upstream.port}`,
      upstream_status: '200',
      duration_s: expect.any(Number),
    });
    const log = await nginx.accessLog();
    for (const secret of [key, 'Bearer', 'uthorization', 'idem-secret', 'of-the-event'])
      expect(log).not.toContain(secret);
    expect(nginx.errors.join('')).not.toContain(`Bearer ${key}`);
  });
});
