// Which connection carries which request: reuse, loss between two requests, bounds, the end of the client, TLS.
import type { LookupAddress } from 'node:dns';
import type { Socket } from 'node:net';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import { afterEach, describe, expect, test } from 'vitest';
import { createEgressPolicy } from '#runtime/egress.ts';
import { eventually } from '#test/support/eventually.ts';
import { type RawEndpoint, rawEndpoint } from '#test/support/raw-endpoint.ts';
import { selfSigned } from '#test/support/self-signed.ts';
import {
  EndpointClient,
  type EndpointRequest,
  type EndpointResult,
} from '../../apps/worker/endpoint-client.ts';

const address = (host: string): LookupAddress => ({ address: host, family: 4 });
/** Every name is this machine. */
const policy = createEgressPolicy(['127.0.0.0/8'], {
  resolver: async () => [address('127.0.0.1')],
});
const OK = 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n';
const NONE = { busy: 0, idle: 0, idleOrigins: 0 };
const OK_CLOSE = 'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n';

const answering = async (answer = OK) =>
  rawEndpoint((socket) => socket.on('data', () => socket.write(answer)));

function aRequest(endpoint: RawEndpoint, changes: Partial<EndpointRequest> = {}): EndpointRequest {
  const url = `http://127.0.0.1:${endpoint.port}/`;
  return { url, headers: {}, body: '{}', timeoutMs: 10_000, ...changes };
}

describe('reuse', () => {
  test('one after the other takes one connection; at the same time each takes its own', async () => {
    await using endpoint = await answering();
    await using client = new EndpointClient({ policy });
    for (let n = 0; n < 5; n += 1) await client.send(aRequest(endpoint));
    expect(endpoint.sockets).toHaveLength(1);
    await Promise.all(Array.from({ length: 10 }, () => client.send(aRequest(endpoint))));
    expect(endpoint.sockets).toHaveLength(10);
    expect(client.connections).toEqual({ busy: 0, idle: 10, idleOrigins: 1 });
    // the one that was used last, so that the others can end
    const before = endpoint.received.map((text) => text.length);
    for (let n = 0; n < 20; n += 1) await client.send(aRequest(endpoint));
    expect(endpoint.received.filter((text, index) => text.length > before[index]!)).toHaveLength(1);
  });

  test('a connection that the server closed while it was idle is replaced, and nothing fails', async () => {
    await using endpoint = await rawEndpoint((socket) =>
      socket.on('data', () => socket.write(OK, () => socket.end())),
    );
    await using client = new EndpointClient({ policy });
    for (let n = 1; n <= 5; n += 1) {
      expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
      await eventually(() => expect(client.connections).toEqual(NONE));
      expect(endpoint.sockets).toHaveLength(n);
    }
  });

  test('"connection: close" is obeyed, also by requests that follow at once', async () => {
    await using endpoint = await answering(OK_CLOSE);
    await using client = new EndpointClient({ policy });
    for (let n = 1; n <= 20; n += 1) {
      expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
    }
    expect(endpoint.sockets).toHaveLength(20);
    await eventually(() => expect(client.connections).toEqual(NONE));
  });

  test('a request that was written and whose connection is closed then fails, and is not sent again', async () => {
    await using endpoint = await rawEndpoint((socket) => {
      socket.once('data', () => {
        socket.write(OK);
        socket.once('data', () => socket.end());
      });
    });
    await using client = new EndpointClient({ policy });
    expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
    expect(await client.send(aRequest(endpoint))).toMatchObject({
      kind: 'failure',
      error: 'connection closed before an answer',
    });
    expect(endpoint.received.join('').match(/POST/g)).toHaveLength(2);
    expect(client.connections).toEqual(NONE);
  });

  test('an answer that nobody asked for ends the connection, and is nobody’s answer', async () => {
    await using endpoint = await rawEndpoint((socket, number) =>
      socket.on('data', () =>
        socket.write(number === 1 ? `${OK}HTTP/1.1 500 Forged\r\ncontent-length: 0\r\n\r\n` : OK),
      ),
    );
    await using client = new EndpointClient({ policy });
    expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
    expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
    expect(endpoint.sockets).toHaveLength(2);
  });
});

describe('bounds', () => {
  test('idle connections are bounded over all origins, the oldest goes first', async () => {
    await using endpoint = await answering();
    await using client = new EndpointClient({ policy, idleConnectionsMax: 3 });
    const url = (n: number) => `http://origin-${n}.example:${endpoint.port}/`;
    for (let n = 0; n < 50; n += 1) {
      expect(await client.send(aRequest(endpoint, { url: url(n) }))).toMatchObject({ status: 200 });
      expect(client.connections.idle).toBeLessThanOrEqual(3);
      expect(client.connections.idleOrigins).toBeLessThanOrEqual(3);
    }
    await eventually(() =>
      expect(endpoint.sockets.filter((socket) => !socket.destroyed)).toHaveLength(3),
    );
    await client.send(aRequest(endpoint, { url: url(49) }));
    expect(endpoint.sockets).toHaveLength(50);
    await client.send(aRequest(endpoint, { url: url(0) }));
    expect(endpoint.sockets).toHaveLength(51);
  });

  test('an idle connection ends in the time that the server says', async () => {
    // undici leaves 2 s of it, so that none is used in the moment in which the server closes it
    const answer = 'HTTP/1.1 200 OK\r\nkeep-alive: timeout=3\r\ncontent-length: 0\r\n\r\n';
    await using endpoint = await answering(answer);
    await using client = new EndpointClient({ policy });
    await client.send(aRequest(endpoint));
    expect(client.connections.idle).toBe(1);
    await eventually(() => expect(client.connections.idle).toBe(0));
    await eventually(() => expect(endpoint.sockets[0]!.destroyed).toBe(true));
  });
});

describe('the end of the client', () => {
  test('what is under way is waited for, and nothing more is taken', async () => {
    const sockets: Socket[] = [];
    await using endpoint = await rawEndpoint((socket) =>
      socket.on('data', () => sockets.push(socket)),
    );
    const client = new EndpointClient({ policy });
    const sent = [client.send(aRequest(endpoint)), client.send(aRequest(endpoint))];
    await eventually(() => expect(sockets).toHaveLength(2));
    let isClosed = false;
    const closed = client.close().then(() => (isClosed = true));
    expect(await client.send(aRequest(endpoint))).toMatchObject({ error: 'the client is closed' });
    sockets[0]!.write(OK);
    await sent[0];
    expect(isClosed).toBe(false);
    sockets[1]!.write(OK);
    await closed;
    expect(await Promise.all(sent)).toMatchObject([{ status: 200 }, { status: 200 }]);
    expect(client.connections).toEqual(NONE);
    await eventually(() => expect(endpoint.sockets.every((each) => each.destroyed)).toBe(true));
  });

  test('a request that times out while the client closes lets it close', async () => {
    await using endpoint = await rawEndpoint(() => {});
    const client = new EndpointClient({ policy });
    const sent = client.send(aRequest(endpoint, { timeoutMs: 100 }));
    await client.close();
    expect(await sent).toMatchObject({ error: 'timeout after 100 ms' });
  });
});

describe('TLS', () => {
  const trusted = getCACertificates('default');
  afterEach(() => setDefaultCACertificates(trusted));

  async function sendTo(endpoint: RawEndpoint, host: string): Promise<EndpointResult> {
    await using client = new EndpointClient({ policy });
    const url = `https://${host}:${endpoint.port}/`;
    return await client.send(aRequest(endpoint, { url, timeoutMs: 5000 }));
  }

  const answerTo = (socket: Socket) => socket.on('data', () => socket.write(OK));

  test('a certificate that is trusted, by HTTP/1.1', async () => {
    const tls = selfSigned({ names: ['hook.example'] });
    setDefaultCACertificates([tls.cert]);
    await using endpoint = await rawEndpoint(answerTo, {
      tls: { ...tls, ALPNProtocols: ['h2', 'http/1.1'] },
    });
    expect(await sendTo(endpoint, 'hook.example')).toMatchObject({ kind: 'answer', status: 200 });
    expect(endpoint.received[0]).toContain('POST / HTTP/1.1');
    expect(endpoint.sockets[0]).toMatchObject({
      alpnProtocol: 'http/1.1',
      servername: 'hook.example',
    });
  });

  test.each([
    ['nobody trusts', 'hook.example', {}, false, 'certificate is self-signed'],
    [
      'has expired',
      'hook.example',
      { validFrom: new Date('2020-01-01'), validTo: new Date('2021-01-01') },
      true,
      'certificate has expired',
    ],
    [
      'is not yet valid',
      'hook.example',
      { validFrom: new Date('2048-01-01'), validTo: new Date('2049-01-01') },
      true,
      'certificate is not yet valid',
    ],
    ['is of another host', 'other.example', {}, true, 'certificate is for another host name'],
    ['is of a name, at an address', '127.0.0.1', {}, true, 'certificate is for another host name'],
  ])('a certificate that %s is refused', async (_what, host, validity, isTrusted, error) => {
    const tls = selfSigned({ names: ['hook.example'], ...validity });
    if (isTrusted) setDefaultCACertificates([tls.cert]);
    await using endpoint = await rawEndpoint(answerTo, { tls });
    expect(await sendTo(endpoint, host)).toMatchObject({ kind: 'failure', error });
    expect(endpoint.received.join('')).toBe('');
  });

  test('a port without TLS', async () => {
    await using endpoint = await answering('HTTP/1.1 400 Bad Request\r\n\r\n');
    expect(await sendTo(endpoint, 'hook.example')).toMatchObject({ error: 'no TLS at this port' });
  });

  test('a handshake without an end: the deadline ends it, and its connection', async () => {
    await using endpoint = await rawEndpoint(() => {});
    await using client = new EndpointClient({ policy });
    const url = `https://hook.example:${endpoint.port}/`;
    expect(await client.send(aRequest(endpoint, { url, timeoutMs: 200 }))).toMatchObject({
      error: 'timeout after 200 ms',
    });
    // sooner than undici gives up a connection by itself, after 5 s
    await eventually(() => expect(endpoint.sockets[0]!.destroyed).toBe(true), { timeoutMs: 3000 });
    expect(client.connections).toEqual(NONE);
  });
});
