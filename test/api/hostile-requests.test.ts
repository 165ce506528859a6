// Goal: whatever comes in gets the problem that fits, with a pointer where a member is at fault, and the process stays healthy.
// Method: one table of requests over real sockets; then requests that are no proper HTTP at all.
import { connect } from 'node:net';
import { text as textOf } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startApp, type TestApp } from '../support/app.ts';
import { cloneDatabase } from '../support/database.ts';
import { hostileRequests, publish, receive } from '../support/hostile-requests.ts';

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let app: TestApp;
beforeAll(async () => {
  database = await cloneDatabase();
  app = await startApp(database.url, {
    env: { REQUEST_TIMEOUT_MS: '1000', PUBLISH_BODY_BYTES_MAX: '1048576' },
  });
  await app.call('PUT /api/v1/topics/orders', {});
  await app.call('PUT /api/v1/topics/other', {});
  await app.call('PUT /api/v1/subscriptions/billing', { topic: 'orders', type: 'pull' });
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

test.each(hostileRequests)('%s', async (_what, route, body, status, code, pointer, headers) => {
  const answer = await app.call(route, body, { headers: headers ?? {} });
  expect([answer.status, answer.json?.code], answer.text).toEqual([status, code]);
  expect(answer.headers['content-type']).toContain('application/problem+json');
  expect(answer.json).toMatchObject({
    status,
    title: expect.any(String) as string,
  });
  if (pointer !== undefined) {
    expect((answer.json.errors as { pointer: string }[]).map((error) => error.pointer)).toContain(
      pointer,
    );
  }
});

test('what is refused in the envelope goes through untouched in data', async () => {
  const data =
    '{"__proto__":{"x":1},"constructor":1,"a":1,"a":2,"n":1e999999,"big":12345678901234567890.10}';
  const answer = await app.call(publish, `{"type":"raw","data":${data}}`);
  expect(answer.status).toBe(202);
  const got = await app.call(receive, { max_messages: 10 });
  expect(got.text).toContain(`"data":${data}}`);
});

/** Sends text over a socket and returns all that comes back until the broker closes it. */
async function sendRaw(request: string | Buffer): Promise<string> {
  const socket = connect(Number(new URL(app.address).port), '127.0.0.1');
  socket.write(request);
  return textOf(socket);
}

describe('what is not proper HTTP', () => {
  const auth = (): string => `Host: x\r\nAuthorization: Bearer ${app.adminKey}\r\n`;
  const post = `POST /api/v1/topics/orders/events HTTP/1.1\r\n`;

  test.each([
    ['garbage', () => '\x16\x03\x01\x02\x00\x01\r\n\r\n', 400],
    ['a header without a colon', () => `GET / HTTP/1.1\r\nHost x\r\n\r\n`, 400],
    ['two lengths', () => `${post}${auth()}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc`, 400],
    [
      'a length and chunks',
      () => `${post}${auth()}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
      400,
    ],
    [
      'a body that never comes',
      () => `${post}${auth()}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"type"`,
      408,
    ],
    ['headers that never end', () => `${post}X-Slow: 1\r\n`, 408],
  ])('%s', async (_what, request, status) => {
    expect(await sendRaw(request())).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  });
});

test('after all that the process is healthy and publishes', async () => {
  expect((await app.call('GET /api/health')).status).toBe(200);
  expect((await app.call(publish, { type: 'fine' })).status).toBe(202);
  expect(Object.prototype).not.toHaveProperty('x');
});
