/**
 * Goal: nginx sends again what may be sent again, and nothing else.
 *
 * Method: the project's nginx in front of two servers in the API's place, which write down every copy that comes and do what
 * the test says: break off after they have read the request, say nothing, answer 503.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import { freePort } from '#test/support/cluster.ts';
import { type DnsServer, startDnsServer } from '#test/support/dns-server.ts';
import { eventually } from '#test/support/eventually.ts';
import { type Answer, codeOf, HttpClient } from '#test/support/http-client.ts';
import { findNginx } from '#test/support/nginx-binary.ts';
import {
  startUpstream,
  type Upstream,
  type UpstreamOptions,
} from '#test/support/nginx-upstream.ts';
import { Nginx } from '#test/support/nginx.ts';

const hosts = ['127.0.0.5', '127.0.0.6'] as const;
/** Nobody listens there. */
const deadHost = '127.0.0.7';
const resources = new AsyncDisposableStack();
let upstreams: readonly Upstream[];
let dns: DnsServer;
let nginx: Nginx;
let client: HttpClient;
/** How many requests from now on are broken off, or left without an answer. */
let toBreak = 0;
let toIgnore = 0;

const act: UpstreamOptions['act'] = ({ url }, response) => {
  if (url === '/api/health') return void response.end('{}');
  if (toBreak > 0) {
    toBreak -= 1;
    return void response.destroy();
  }
  if (toIgnore > 0) {
    toIgnore -= 1;
    return undefined;
  }
  response.writeHead(url.includes('/full/') ? 503 : 200).end('{}');
};

beforeAll(async () => {
  const port = await freePort();
  const started = hosts.map(async (host) => startUpstream({ host, port, act }));
  upstreams = (await Promise.all(started)).map((upstream) => resources.use(upstream));
  const binary = resources.use(await findNginx());
  dns = resources.use(await startDnsServer('tasks.api'));
  dns.set(hosts);
  client = resources.use(new HttpClient('any'));
  nginx = resources.use(
    await Nginx.start(binary, {
      DNS_RESOLVER: dns.address,
      API_PORT: String(port),
      API_ANSWER_SECONDS: '1',
      API_WAIT_SECONDS: '2',
      ADMIN_ALLOW: 'all',
    }),
  );
});

/** Both serve: nobody is thought dead because of the test before. */
beforeEach(async () => {
  toBreak = 0;
  toIgnore = 0;
  dns.set(hosts);
  await eventually(async () => {
    for (let n = 0; n < 4; n += 1) await client.send(`${nginx.url}/api/health`);
    const served = (await nginx.accessLines()).slice(-4).map(({ upstream }) => upstream);
    // at the first attempt, and not because nobody was thought alive
    const addresses = hosts.map((host) => `${host}:${upstreams[0]?.port}`);
    const missing = addresses.filter((address) => !served.includes(address));
    if (missing.length > 0) throw new Error(`not served by ${missing.join()}: ${served.join()}`);
  });
});

afterAll(async () => {
  await resources.disposeAsync();
});

interface Sent {
  readonly answer: Answer;
  /** Copies that came to any of the servers. */
  readonly copies: number;
}

async function send(path: string, headers: Record<string, string> = {}): Promise<Sent> {
  const url = `/api/v1/${path}`;
  const count = (): number =>
    upstreams.flatMap(({ arrivals }) => arrivals).filter((arrival) => arrival.url === url).length;
  const before = count();
  const answer = await client.send(nginx.url + url, { body: { type: 'a' }, headers });
  return { answer, copies: count() - before };
}

const once = [
  ['a receive', 'subscriptions/billing/receive', {}],
  ['a publish without a key', 'topics/orders/events', {}],
  ['a redrive', 'subscriptions/billing/dlq/redrive', {}],
  ['a new API key', 'api-keys', { 'idempotency-key': 'k' }],
] as const;

const again = [
  ['a publish with a key', 'topics/orders/events', { 'idempotency-key': 'k' }],
  ['an ack', 'subscriptions/billing/ack', {}],
  ['a nack', 'subscriptions/billing/nack', {}],
  ['an extend', 'subscriptions/billing/extend', {}],
] as const;

describe.each(once)('%s', (_name, path, headers) => {
  test('is not sent again when the server broke off', async () => {
    toBreak = 1;
    const { answer, copies } = await send(path, headers);
    expect([answer.status, codeOf(answer), copies]).toEqual([502, 'upstream_unavailable', 1]);
  });

  test('is not sent again when the server says nothing', async () => {
    toIgnore = 1;
    const { answer, copies } = await send(path, headers);
    expect([answer.status, codeOf(answer), copies]).toEqual([504, 'upstream_timeout', 1]);
  });

  test('goes to another when nobody listens at an address', async () => {
    dns.set([deadHost, ...hosts]);
    const sent: Sent[] = [];
    await eventually(async () => {
      sent.push(await send(path, headers));
      const lines = await nginx.accessLines();
      expect(lines.some(({ upstream }) => upstream.startsWith(deadHost))).toBe(true);
    });
    for (const { answer, copies } of sent) expect([answer.status, copies]).toEqual([200, 1]);
  });
});

describe.each(again)('%s', (_name, path, headers) => {
  test.each([1, 2])('is sent again when %i servers broke off', async (count) => {
    toBreak = count;
    const { answer, copies } = await send(path, headers);
    expect([answer.status, copies]).toEqual([200, count + 1]);
  });

  test('is sent again when the server says nothing', async () => {
    toIgnore = 1;
    const { answer, copies } = await send(path, headers);
    expect([answer.status, copies]).toEqual([200, 2]);
  });

  test('is given up in the end', async () => {
    toBreak = 100;
    const { answer, copies } = await send(path, headers);
    expect([answer.status, codeOf(answer)]).toEqual([502, 'upstream_unavailable']);
    expect(copies).toBeLessThanOrEqual(6);
  });
});

test('the 503 of a full topic is passed on as it is, and takes no replica from the others', async () => {
  for (let n = 0; n < 20; n += 1) {
    const full = await send('topics/full/events', { 'idempotency-key': `k-${n}` });
    expect([full.answer.status, full.answer.text, full.copies]).toEqual([503, '{}', 1]);
    const other = await send('subscriptions/billing/receive');
    expect([other.answer.status, other.copies]).toEqual([200, 1]);
  }
});
