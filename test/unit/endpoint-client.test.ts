// Endpoints that misbehave, each a real server: goal, that a request always ends with what the status says or a few words,
// in its time, and that nothing is sent twice or followed.
import type { Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { createEgressPolicy } from '#runtime/egress.ts';
import { eventually } from '#test/support/eventually.ts';
import { type RawEndpoint, rawEndpoint } from '#test/support/raw-endpoint.ts';
import {
  EndpointClient,
  type EndpointRequest,
  type EndpointResult,
} from '../../apps/worker/endpoint-client.ts';

const policy = createEgressPolicy(['127.0.0.0/8']);
const OK = 'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok';
const BIG = Buffer.alloc(16 * 1024 * 1024, 'x');

function aRequest(endpoint: RawEndpoint, changes: Partial<EndpointRequest> = {}): EndpointRequest {
  return {
    url: `http://127.0.0.1:${endpoint.port}/hook`,
    headers: { 'content-type': 'application/json' },
    body: '{}',
    timeoutMs: 10_000,
    ...changes,
  };
}

async function send(
  endpoint: RawEndpoint,
  changes: Partial<EndpointRequest> = {},
): Promise<EndpointResult> {
  await using client = new EndpointClient({ policy });
  return await client.send(aRequest(endpoint, changes));
}

/** Writes something again and again until the connection ends. */
function drip(socket: Socket, text: string, everyMs: number): void {
  const timer = setInterval(() => socket.write(text), everyMs);
  socket.on('close', () => clearInterval(timer));
}

/** Writes as fast as it is read, to the end of the connection. */
function flood(socket: Socket, chunk: string | Buffer): void {
  const write = (): void => {
    while (!socket.destroyed && socket.write(chunk));
  };
  socket.on('drain', write);
  write();
}

const onRequest = (act: (socket: Socket) => void) => (socket: Socket) => {
  socket.once('data', () => act(socket));
};

test('what is sent', async () => {
  await using endpoint = await rawEndpoint(onRequest((socket) => socket.write(OK)));
  const result = await send(endpoint, {
    url: `http://127.0.0.1:${endpoint.port}/a%20b/ü?c=d&e=%2F`,
    headers: { 'content-type': 'text/plain', 'ce-id': '1' },
    body: Buffer.from('{"ü":1}'),
  });
  expect(result).toEqual({
    kind: 'answer',
    status: 200,
    retryAfterMs: undefined,
    response: Buffer.from('ok'),
    durationMs: expect.any(Number),
  });
  expect(Number.isInteger(result.durationMs)).toBe(true);
  expect(Buffer.from(endpoint.received[0]!, 'latin1').toString()).toBe(
    'POST /a%20b/%C3%BC?c=d&e=%2F HTTP/1.1\r\n' +
      `host: 127.0.0.1:${endpoint.port}\r\nconnection: keep-alive\r\n` +
      'content-type: text/plain\r\nce-id: 1\r\ncontent-length: 8\r\n\r\n{"ü":1}',
  );
});

describe('answers', () => {
  test.each([
    ['nothing', 'HTTP/1.1 204 No Content\r\n\r\n', 204],
    ['an unknown status', 'HTTP/1.1 299 Hm\r\ncontent-length: 0\r\n\r\n', 299],
    ['a status that is none', 'HTTP/1.1 999 Denied\r\ncontent-length: 0\r\n\r\n', 999],
    ['HTTP/1.0 and the end', 'HTTP/1.0 200 OK\r\n\r\nok', 200],
    ['early hints first', `HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n${OK}`, 200],
    ['chunks', 'HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n', 500],
  ])('%s', async (_what, answer, status) => {
    await using endpoint = await rawEndpoint(onRequest((socket) => socket.end(answer)));
    expect(await send(endpoint)).toMatchObject({ kind: 'answer', status });
  });

  test.each([301, 302, 303, 307, 308])('%i is not followed', async (status) => {
    await using other = await rawEndpoint(onRequest((socket) => socket.write(OK)));
    await using endpoint = await rawEndpoint(
      onRequest((socket) => {
        const location = `http://127.0.0.1:${other.port}/`;
        socket.write(
          `HTTP/1.1 ${status} There\r\nlocation: ${location}\r\ncontent-length: 0\r\n\r\n`,
        );
      }),
    );
    expect(await send(endpoint)).toMatchObject({ kind: 'answer', status });
    expect(other.sockets).toHaveLength(0);
  });

  test.each([
    ['retry-after: 7', 7000],
    ['retry-after: 99999', 3_600_000],
    ['date: Fri, 31 Jan 2025 12:00:00 GMT\r\nretry-after: Fri, 31 Jan 2025 12:00:09 GMT', 9000],
    ['retry-after: Fri, 31 Jan 2025 12:00:09 GMT', 0],
    ['retry-after: 3\r\nretry-after: 4', 3000],
    ['retry-after: soon', undefined],
  ])('%j', async (headers, retryAfterMs) => {
    const answer = `HTTP/1.1 503 Busy\r\n${headers}\r\ncontent-length: 0\r\n\r\n`;
    await using endpoint = await rawEndpoint(onRequest((socket) => socket.write(answer)));
    expect(await send(endpoint)).toMatchObject({ kind: 'answer', status: 503, retryAfterMs });
  });

  test('the first 1,024 bytes are kept, as they came', async () => {
    const packed = gzipSync(Buffer.from('hello'));
    const long = Buffer.from('0123456789'.repeat(500));
    for (const body of [packed, long]) {
      const head = `HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: ${body.length}\r\n\r\n`;
      await using endpoint = await rawEndpoint(
        onRequest((socket) => {
          socket.write(head);
          socket.write(body);
        }),
      );
      expect(await send(endpoint)).toMatchObject({ response: body.subarray(0, 1024) });
    }
  });

  test('a body of 16 KiB is read to its end, and its connection used again', async () => {
    const answer = `HTTP/1.1 200 OK\r\ncontent-length: 16384\r\n\r\n${'x'.repeat(16_384)}`;
    await using endpoint = await rawEndpoint((socket) =>
      socket.on('data', () => socket.write(answer)),
    );
    await using client = new EndpointClient({ policy });
    await client.send(aRequest(endpoint));
    await client.send(aRequest(endpoint));
    expect(endpoint.sockets).toHaveLength(1);
  });
});

describe('bodies without an end hold up nothing: the status decides', () => {
  test.each([
    ['1 GiB', 'content-length: 1073741824\r\n\r\n', 'x'.repeat(65_536)],
    ['endless', '\r\n', 'x'.repeat(65_536)],
    ['endless chunks', 'transfer-encoding: chunked\r\n\r\n', `1000\r\n${'x'.repeat(4096)}\r\n`],
  ])('%s', async (_what, head, chunk) => {
    await using endpoint = await rawEndpoint(
      onRequest((socket) => {
        socket.write(`HTTP/1.1 200 OK\r\n${head}`);
        flood(socket, chunk);
      }),
    );
    const result = await send(endpoint);
    expect(result).toMatchObject({ kind: 'answer', status: 200 });
    expect(result.kind === 'answer' && result.response).toHaveLength(1024);
    await eventually(() => expect(endpoint.sockets[0]!.destroyed).toBe(true));
    // what the system's buffers hold, at most
    expect(endpoint.sockets[0]!.bytesWritten).toBeLessThan(32 * 1024 * 1024);
  });

  test('a body that drips is waited for until the deadline', async () => {
    await using endpoint = await rawEndpoint(
      onRequest((socket) => {
        socket.write('HTTP/1.1 500 No\r\ncontent-length: 10000\r\n\r\n');
        drip(socket, 'x', 10);
      }),
    );
    expect(await send(endpoint, { timeoutMs: 200 })).toMatchObject({ kind: 'answer', status: 500 });
    await eventually(() => expect(endpoint.sockets[0]!.destroyed).toBe(true));
  });

  test.each([
    ['ends too early', (socket: Socket) => socket.end()],
    ['is reset', (socket: Socket) => socket.resetAndDestroy()],
  ])('a body that %s', async (_what, act) => {
    await using endpoint = await rawEndpoint(
      onRequest((socket) => {
        socket.write('HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf', () => act(socket));
      }),
    );
    expect(await send(endpoint)).toMatchObject({ kind: 'answer', status: 200 });
  });
});

describe('no answer', () => {
  const silent = async () => rawEndpoint(() => {});

  test('an endpoint that never answers', async () => {
    await using endpoint = await silent();
    expect(await send(endpoint, { timeoutMs: 100 })).toMatchObject({
      kind: 'failure',
      error: 'timeout after 100 ms',
    });
    await eventually(() => expect(endpoint.sockets[0]!.destroyed).toBe(true));
  });

  test('an endpoint that accepts and never reads', async () => {
    await using endpoint = await rawEndpoint((socket) => socket.pause(), { reads: false });
    expect(await send(endpoint, { timeoutMs: 200, body: BIG })).toMatchObject({
      error: 'timeout after 200 ms',
    });
  });

  test('headers that drip', async () => {
    await using endpoint = await rawEndpoint(
      onRequest((socket) => {
        socket.write('HTTP/1.1 200 OK\r\nx-drip: ');
        drip(socket, 'x', 10);
      }),
    );
    expect(await send(endpoint, { timeoutMs: 200 })).toMatchObject({
      error: 'timeout after 200 ms',
    });
  });

  test('early hints without an end', async () => {
    await using endpoint = await rawEndpoint(
      onRequest((socket) => drip(socket, 'HTTP/1.1 103 Early Hints\r\n\r\n', 10)),
    );
    expect(await send(endpoint, { timeoutMs: 200 })).toMatchObject({
      error: 'timeout after 200 ms',
    });
  });

  test('a look-up without an end', async () => {
    const waiting = Promise.withResolvers<never>();
    const slow = createEgressPolicy([], { resolver: () => waiting.promise });
    await using client = new EndpointClient({ policy: slow });
    const request = { url: 'http://slow.example/', headers: {}, body: '', timeoutMs: 100 };
    expect(await client.send(request)).toMatchObject({ error: 'timeout after 100 ms' });
  });

  test('a name that there is not', async () => {
    const none = createEgressPolicy([], {
      resolver: async () => {
        throw Object.assign(new Error('getaddrinfo ENOTFOUND none.example'), { code: 'ENOTFOUND' });
      },
    });
    await using client = new EndpointClient({ policy: none });
    const request = { url: 'http://none.example/', headers: {}, body: '', timeoutMs: 10_000 };
    expect(await client.send(request)).toMatchObject({ error: 'host name not found' });
  });

  test('nobody listens', async () => {
    const endpoint = await silent();
    await endpoint[Symbol.asyncDispose]();
    expect(await send(endpoint)).toMatchObject({ error: 'connection refused' });
  });

  test.each([
    ['closes at once', (socket: Socket) => socket.end(), /^connection (closed|reset)/],
    ['resets at once', (socket: Socket) => socket.resetAndDestroy(), /^connection (closed|reset)/],
    [
      'closes in its headers',
      (socket: Socket) => socket.end('HTTP/1.1 200 OK\r\nx-a'),
      /^connection closed before an answer$/,
    ],
    ['sends garbage', (socket: Socket) => socket.write('\0\u0001garbage\r\n\r\n'), /not HTTP/],
    ['speaks another protocol', (socket: Socket) => socket.write('220 smtp ESMTP\r\n'), /not HTTP/],
    [
      'sends headers of 20 KiB',
      (socket: Socket) => socket.write(`HTTP/1.1 200 OK\r\nx-a: ${'x'.repeat(20_480)}\r\n\r\n`),
      /^headers of the answer too large$/,
    ],
    ['sends headers without an end', (socket: Socket) => flood(socket, 'x-a: b\r\n'), /not HTTP/],
    [
      'sends a header twice that says how long the body is',
      (socket: Socket) =>
        socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab'),
      /not HTTP|shorter or longer/,
    ],
    [
      'switches protocols',
      (socket: Socket) =>
        socket.write('HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n'),
      /^connection closed before an answer$/,
    ],
  ])('an endpoint that %s', async (_what, act, error) => {
    await using endpoint = await rawEndpoint(onRequest(act));
    expect(await send(endpoint)).toMatchObject({
      kind: 'failure',
      error: expect.stringMatching(error),
    });
    expect(endpoint.sockets).toHaveLength(1);
  });

  test('an error says nothing of what was sent', async () => {
    await using endpoint = await silent();
    const result = await send(endpoint, {
      url: `http://127.0.0.1:${endpoint.port}/?token=secret`,
      headers: { authorization: 'secret', 'x-bad': 'secret\r\nx-evil: 1' },
      body: 'secret',
    });
    expect(result).toMatchObject({ kind: 'failure', error: 'invalid x-bad header' });
    expect(endpoint.received).toEqual([]);
  });
});

describe('answers before the request is read', () => {
  test('with the connection open: the status counts, and the connection is not used again', async () => {
    await using endpoint = await rawEndpoint(
      (socket, number) => {
        if (number === 1) socket.write('HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n');
        else socket.once('data', () => socket.write(OK));
      },
      { reads: false },
    );
    await using client = new EndpointClient({ policy });
    expect(await client.send(aRequest(endpoint, { body: BIG }))).toMatchObject({ status: 413 });
    expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
    expect(endpoint.sockets).toHaveLength(2);
  });

  test('with the connection closed: an end in any case', async () => {
    await using endpoint = await rawEndpoint(
      onRequest((socket) => {
        socket.end('HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
        socket.destroySoon();
      }),
    );
    const result = await send(endpoint, { body: BIG });
    if (result.kind === 'answer') expect(result.status).toBe(413);
    else expect(result.error).toMatch(/^connection (closed|reset)/);
  });
});

describe('aborted', () => {
  test('many requests end with one signal', async () => {
    await using endpoint = await rawEndpoint(() => {});
    await using client = new EndpointClient({ policy });
    const abort = new AbortController();
    const request = aRequest(endpoint, { signal: abort.signal });
    const sent = Array.from({ length: 50 }, () => client.send(request));
    await eventually(() => expect(endpoint.received.filter(Boolean)).toHaveLength(50));
    abort.abort();
    for (const result of await Promise.all(sent)) {
      expect(result).toMatchObject({ kind: 'failure', error: 'aborted' });
    }
    await eventually(() => expect(endpoint.sockets.every((each) => each.destroyed)).toBe(true));
    expect(client.connections).toEqual({ busy: 0, idle: 0, idleOrigins: 0 });
    expect(await client.send(request)).toMatchObject({ error: 'aborted' });
    expect(endpoint.sockets).toHaveLength(50);
  });

  test('what was answered before is not touched', async () => {
    await using endpoint = await rawEndpoint((socket) => socket.on('data', () => socket.write(OK)));
    await using client = new EndpointClient({ policy });
    const abort = new AbortController();
    expect(await client.send(aRequest(endpoint, { signal: abort.signal }))).toMatchObject({
      status: 200,
    });
    abort.abort();
    expect(await client.send(aRequest(endpoint))).toMatchObject({ status: 200 });
    expect(endpoint.sockets).toHaveLength(1);
  });
});
