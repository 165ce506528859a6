/**
 * Goal: nginx speaks TLS as it should be spoken today, sends everybody else there, and takes a renewed certificate without a restart.
 *
 * Method: the project's nginx, started by deploy/nginx/start with TLS=on, in front of one server in the API's place.
 */
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { get } from 'node:https';
import { text } from 'node:stream/consumers';
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { startDnsServer } from '#test/support/dns-server.ts';
import { eventually } from '#test/support/eventually.ts';
import { HttpClient } from '#test/support/http-client.ts';
import { findNginx, type NginxBinary } from '#test/support/nginx-binary.ts';
import { startUpstream, type Upstream } from '#test/support/nginx-upstream.ts';
import { checkNginx, Nginx } from '#test/support/nginx.ts';
import { selfSigned } from '#test/support/self-signed.ts';

const resources = new AsyncDisposableStack();
const key = 'a-key';
/** Of the key in RFC 7638 section 3.1. */
const thumbprint = 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs';
const events = '/api/v1/topics/orders/events';
let binary: NginxBinary;
let upstream: Upstream;
let nginx: Nginx;
let client: HttpClient;

beforeAll(async () => {
  binary = resources.use(await findNginx());
  upstream = resources.use(await startUpstream({ host: '127.0.0.2' }));
  const dns = resources.use(await startDnsServer('tasks.api'));
  dns.set(['127.0.0.2']);
  const settings = { DNS_RESOLVER: dns.address, API_PORT: String(upstream.port) };
  nginx = resources.use(
    await Nginx.start(binary, { ...settings, TLS: 'on', ACME_THUMBPRINT: thumbprint }),
  );
  client = resources.use(new HttpClient(key));
});

afterAll(async () => {
  await resources.disposeAsync();
});

async function getTls(path: string) {
  const request = get(`${nginx.tlsUrl}${path}`, { ca: nginx.cert });
  const [response] = await once(request, 'response');
  return { status: response.statusCode, headers: response.headers, body: await text(response) };
}

describe('TLS', () => {
  async function handshake(options: ConnectionOptions): Promise<TLSSocket> {
    const socket = connectTls({
      port: nginx.tlsPort,
      host: '127.0.0.1',
      servername: 'localhost',
      ca: nginx.cert,
      ...options,
    });
    await once(socket, 'secureConnect');
    return socket;
  }

  test.each(['TLSv1.2', 'TLSv1.3'] as const)('%s is spoken', async (version) => {
    const socket = await handshake({ minVersion: version, maxVersion: version });
    expect(socket.getProtocol()).toBe(version);
    socket.destroy();
  });

  test('TLS 1.1 is refused', async () => {
    const old = { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1' } as const;
    await expect(handshake({ ...old, ciphers: 'ALL@SECLEVEL=0' })).rejects.toMatchObject({
      code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION',
    });
  });

  test('ciphers without forward secrecy are refused', async () => {
    const ciphers = 'AES128-GCM-SHA256:AES128-SHA:DHE-RSA-AES128-GCM-SHA256';
    await expect(handshake({ maxVersion: 'TLSv1.2', ciphers })).rejects.toMatchObject({
      code: expect.stringMatching(/HANDSHAKE_FAILURE|NO_CIPHERS/),
    });
  });

  test('HTTP/2 is negotiated and carries requests', async () => {
    const session = connectHttp2(nginx.tlsUrl, { ca: nginx.cert });
    const stream = session.request({ ':path': '/api/health', authorization: `Bearer ${key}` });
    const [headers] = (await once(stream, 'response')) as [Record<string, unknown>];
    expect([headers[':status'], session.alpnProtocol]).toEqual([200, 'h2']);
    expect(await text(stream)).toBe('{}');
    session.close();
    expect(upstream.arrivals.at(-1)?.headers['x-forwarded-proto']).toBe('https');
  });

  test('what nginx itself says over TLS has HSTS and the other headers', async () => {
    const { status, headers } = await getTls('/api/metrics');
    expect(status).toBe(404);
    expect(headers).toMatchObject({
      'strict-transport-security': 'max-age=31536000',
      'x-content-type-options': 'nosniff',
      'cache-control': 'no-store',
      server: 'nginx',
    });
  });

  test('plain HTTP is sent to https with 308, but for the ACME challenge', async () => {
    const moved = await client.send(`${nginx.url}${events}?a=b`, { body: {} });
    expect([moved.status, moved.headers.location]).toEqual([
      308,
      `https://127.0.0.1:${nginx.tlsPort}${events}?a=b`,
    ]);
    const challenge = `${nginx.url}/.well-known/acme-challenge`;
    const answer = await client.send(`${challenge}/a-token_of-43-characters`);
    expect([answer.status, answer.text]).toEqual([200, `a-token_of-43-characters.${thumbprint}`]);
    expect(answer.headers['content-type']).toBe('application/octet-stream');
    expect((await client.send(`${challenge}/a-token`, { body: {} })).status).toBe(405);
    for (const other of ['', 'two/tokens', '%3Cscript%3E', 'a.b', 'x'.repeat(129)])
      expect((await client.send(`${challenge}/${other}`)).status, other).toBe(404);
  });

  test.skipIf(!existsSync('/proc/net/if_inet6'))('IPv6 is listened on as well', async () => {
    const socket = await handshake({ host: '::1' });
    expect(socket.authorized).toBe(true);
    socket.destroy();
    const moved = await client.send(`http://[::1]:${nginx.port}${events}`);
    expect(moved.status).toBe(308);
  });

  test('a reload serves the renewed certificate', async () => {
    const renewed = selfSigned();
    await nginx.put('fullchain.pem', renewed.cert);
    await nginx.put('privkey.pem', renewed.key);
    await nginx.reload();
    await eventually(async () => {
      const socket = await handshake({ ca: renewed.cert });
      expect(socket.authorized).toBe(true);
      socket.destroy();
    });
  });

  test('without a certificate the start says what to do', async () => {
    const { status, output } = await checkNginx(binary, { TLS: 'on', TLS_DIR: '/nonexistent' });
    expect([status, output]).toEqual([64, expect.stringContaining('TLS=off answers the ACME')]);
  });

  test.each([
    [{ ACME_THUMBPRINT: 'short' }, 'ACME_THUMBPRINT has 5 characters'],
    [{ ACME_THUMBPRINT: `${thumbprint.slice(0, -1)};` }, 'ACME_THUMBPRINT is not valid'],
    [{ LISTEN_ADDRESSES: '127.0.0.1/8' }, "LISTEN_ADDRESSES has '127.0.0.1/8'"],
    [{ LISTEN_ADDRESSES: ',' }, 'LISTEN_ADDRESSES has no address'],
  ])('%o is refused', async (settings, words) => {
    const { status, output } = await checkNginx(binary, settings);
    expect([status, output]).toEqual([64, expect.stringContaining(words)]);
  });

  test('without a thumbprint there is no answer to a challenge', async () => {
    await using plain = await Nginx.start(binary, { API_PORT: String(upstream.port) });
    const answer = await client.send(`${plain.url}/.well-known/acme-challenge/token`);
    expect(answer.status).toBe(404);
  });
});
