/**
 * Goal: nginx speaks TLS as it should be spoken today, sends everybody else there, and takes a renewed certificate without a restart.
 *
 * Method: the project's nginx, started by deploy/nginx/start with TLS=on, in front of one server in the API's place.
 */
import { once } from 'node:events';
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
  nginx = resources.use(await Nginx.start(binary, { ...settings, TLS: 'on' }));
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
    await nginx.put('acme/.well-known/acme-challenge/token', 'token.thumbprint');
    const challenge = `${nginx.url}/.well-known/acme-challenge`;
    const answer = await client.send(`${challenge}/token`);
    expect([answer.status, answer.text]).toEqual([200, 'token.thumbprint']);
    expect((await client.send(`${challenge}/other`)).status).toBe(404);
    expect((await client.send(`${challenge}/token`, { body: {} })).status).toBe(403);
    const outside = await client.send(`${challenge}/../../../fullchain.pem`);
    expect(outside.text).not.toContain('CERTIFICATE');
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
    expect([status, output]).toEqual([64, expect.stringContaining('TLS=off serves the ACME')]);
  });
});
