import { expect, test, vi } from 'vitest';
import { decodeWake, earlier, WakeSender } from '#db/wake-sender.ts';
import { eventually } from '../support/eventually.ts';

/** A sender whose statements end when the test says so. */
function aSender(coalesceMs: number) {
  const statements: {
    readonly payloads: readonly string[];
    readonly end: (error?: Error) => void;
  }[] = [];
  const sender = new WakeSender({
    coalesceMs,
    send: async (payloads) =>
      new Promise((resolve, reject) => {
        statements.push({
          payloads,
          end: (error) => (error === undefined ? resolve() : reject(error)),
        });
      }),
  });
  return { sender, statements };
}

test('one statement is under way at a time, and what comes meanwhile goes together as the next', async () => {
  const { sender, statements } = aSender(0);
  sender.add(1, [1]);
  for (let topic = 1; topic <= 600; topic += 1) {
    sender.add(topic, [topic]);
    sender.add(topic, [topic + 1], '2025-01-01T00:00:00Z');
  }
  expect(statements).toHaveLength(1);
  statements[0]!.end();
  await eventually(() => expect(statements).toHaveLength(2));
  expect(statements[1]!.payloads).toHaveLength(500);
  expect(decodeWake(statements[1]!.payloads[0]!)).toEqual({
    topicId: 1,
    subscriptionIds: [1, 2],
    mark: '2025-01-01T00:00:00Z',
    origin: sender.origin,
    askedAt: expect.any(Number) as number,
  });
  statements[1]!.end();
  await eventually(() => expect(statements).toHaveLength(3));
  expect(statements[2]!.payloads).toHaveLength(100);
  statements[2]!.end();
  await sender.close();
});

test('a statement that fails is lost, and the next one goes on', async () => {
  const { sender, statements } = aSender(0);
  sender.add(1, [1]);
  sender.add(1, [2]);
  statements[0]!.end(new Error('the database is away'));
  await eventually(() => expect(statements).toHaveLength(2));
  expect(decodeWake(statements[1]!.payloads[0]!)?.subscriptionIds).toEqual([2]);
  statements[1]!.end();
  await sender.close();
});

test('what waits when it is closed is sent, and no timer is left', async () => {
  // timers that never fire, but are counted; the runner's own are not among them
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const { sender, statements } = aSender(60_000);
  sender.add(1, [1]);
  statements[0]!.end();
  sender.add(1, [2]);
  await eventually(() => expect(vi.getTimerCount()).toBe(1));
  expect(statements).toHaveLength(1);
  const closed = sender.close();
  await eventually(() => expect(statements).toHaveLength(2));
  statements[1]!.end();
  await closed;
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

test('the earlier of two marks is found whatever their fractions', () => {
  const whole = '2025-01-01T00:00:00Z';
  const half = '2025-01-01T00:00:00.5Z';
  expect(earlier(undefined, undefined)).toBeUndefined();
  expect(earlier(whole, undefined)).toBe(whole);
  expect(earlier(undefined, whole)).toBe(whole);
  expect(earlier(half, whole)).toBe(whole);
  expect(earlier(half, '2025-01-01T00:00:00.41Z')).toBe('2025-01-01T00:00:00.41Z');
  expect(earlier(whole, '-infinity')).toBe('-infinity');
});
