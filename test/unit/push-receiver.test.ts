// The receiver of the push tests sees what it is there for, and misbehaves as it is told.
import { once } from 'node:events';
import { connect } from 'node:net';
import { Webhook } from 'standardwebhooks';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually } from '#test/support/eventually.ts';
import { everyNth, PushReceiver, startDeafServer } from '#test/support/push-receiver.ts';

const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';

let receiver: PushReceiver;

beforeAll(async () => {
  receiver = await PushReceiver.start();
});

afterAll(() => receiver[Symbol.dispose]());

async function post(
  url: string,
  eventId: string,
  options: { body?: string; signed?: string } = {},
) {
  const { body = '{"a":1}', signed = body } = options;
  const now = new Date();
  return fetch(url, {
    method: 'POST',
    body,
    signal: AbortSignal.timeout(5000),
    headers: {
      'webhook-id': eventId,
      'webhook-timestamp': String(Math.floor(now.getTime() / 1000)),
      'webhook-signature': new Webhook(secret).sign(eventId, now, signed),
      'broker-delivery-attempt': '2',
    },
  });
}

test('what came is written down, event by event, with its answer', async () => {
  const endpoint = receiver.endpoint('/noted', {
    behaviour: { status: 503, headers: { 'retry-after': '7' }, body: 'later' },
  });
  const answer = await post(endpoint.url, 'a');
  expect([answer.status, answer.headers.get('retry-after'), await answer.text()]).toEqual([
    503,
    '7',
    'later',
  ]);
  endpoint.behaviour = { status: 200, afterMs: 20 };
  await post(endpoint.url, 'a');
  await post(endpoint.url, 'b');
  await endpoint.arrived(2);
  expect(endpoint.eventIds).toEqual(['a', 'b']);
  const seen = { path: '/noted', eventId: 'a', attempt: 2, body: '{"a":1}', state: 'answered' };
  expect(endpoint.requestsOf('a')).toMatchObject([
    { ...seen, number: 1, status: 503 },
    { ...seen, number: 2, status: 200 },
  ]);
  await expect(endpoint.arrived(3, { timeoutMs: 50 })).rejects.toThrow('2 of 3');
});

test('signatures are checked, and a body that was changed is found', async () => {
  const endpoint = receiver.endpoint('/signed');
  endpoint.secret = secret;
  await post(endpoint.url, 'good');
  await post(endpoint.url, 'bad', { signed: '{"a":2}' });
  expect(endpoint.verified).toBe(1);
  expect(endpoint.badSignatures).toEqual(['bad: No matching signature found']);
});

test('every n-th request fails, and the others are accepted', async () => {
  const endpoint = receiver.endpoint('/nth', { behaviour: everyNth(3, { status: 500 }) });
  const statuses: number[] = [];
  for (const id of ['a', 'b', 'c', 'd', 'e', 'f']) {
    statuses.push((await post(endpoint.url, id)).status);
  }
  expect(statuses).toEqual([204, 204, 500, 204, 204, 500]);
});

test('connections are dropped before and after the body was read, and hang until they are cut', async () => {
  const ended: string[] = [];
  const endpoint = receiver.endpoint('/gone', {
    behaviour: ({ eventId }) => eventId as 'hang' | 'drop' | 'drop_after_reading',
    onEnd: ({ eventId, state, body }) => ended.push(`${eventId} ${state} ${body}`),
  });
  await expect(post(endpoint.url, 'drop')).rejects.toThrow('fetch failed');
  await expect(post(endpoint.url, 'drop_after_reading')).rejects.toThrow('fetch failed');
  const hanging = post(endpoint.url, 'hang');
  await eventually(() => expect(endpoint.requestsOf('hang')).toMatchObject([{ body: '{"a":1}' }]));
  expect(endpoint.requestsOf('hang')).toMatchObject([{ state: 'open' }]);
  receiver.cut();
  await expect(hanging).rejects.toThrow('fetch failed');
  await eventually(() =>
    expect(ended).toEqual([
      'drop broken ',
      'drop_after_reading broken {"a":1}',
      'hang broken {"a":1}',
    ]),
  );
});

test('a deaf server takes what the system holds for it, and no more', async () => {
  using deaf = await startDeafServer();
  const socket = connect(Number(new URL(deaf.url).port), '127.0.0.1');
  await once(socket, 'connect');
  socket.write(Buffer.alloc(64 * 1024 * 1024));
  await eventually(() => expect(deaf.taken).toBe(1));
  expect(socket.writableLength).toBeGreaterThan(0);
  socket.destroy();
});
