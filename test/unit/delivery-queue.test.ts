import { expect, test } from 'vitest';
import type { ClaimedEvent } from '#db/claim.ts';
import type { WorkerSession } from '#db/worker-session.ts';
import { DeliveryQueue, type Held } from '../../apps/worker/delivery-queue.ts';

const session = {} as WorkerSession;
const aQueue = (slots = 128): DeliveryQueue =>
  new DeliveryQueue({ id: 1, name: 'mailer', topicId: 1 }, slots);
const held = (id: number, sentAt = 0): Held => ({
  event: { event_id: String(id) } as ClaimedEvent,
  claim: { session, sentAt, leaseMs: 1000 },
});
const ids = (all: readonly Held[]): string[] => all.map(({ event }) => event.event_id);

test('events leave in the order in which they were claimed, also over many', () => {
  const queue = aQueue();
  const taken: Held[] = [];
  for (let i = 0; i < 1000; i += 3) {
    queue.add([held(i), held(i + 1), held(i + 2)]);
    taken.push(queue.take()!, queue.take()!);
  }
  while (queue.waiting > 0) taken.push(queue.take()!);
  expect(queue.take()).toBeUndefined();
  expect(ids(taken)).toEqual(Array.from({ length: 1002 }, (_, i) => String(i)));
});

test('what is picked out leaves the others in their order', () => {
  const queue = aQueue();
  queue.add([held(1, 10), held(2, 10), held(3, 20), held(4, 30)]);
  queue.take();
  expect(queue.oldestAt).toBe(10);
  expect(ids(queue.takeWhere(({ claim }) => claim.sentAt < 25))).toEqual(['2', '3']);
  expect([queue.waiting, queue.oldestAt]).toEqual([1, 30]);
  expect(ids(queue.takeWhere(() => true))).toEqual(['4']);
  expect([queue.waiting, queue.oldestAt]).toEqual([0, Infinity]);
});

test('it wants what its window takes, and as much again; nothing while half of that is there', () => {
  const queue = aQueue();
  expect(queue.room(0)).toBe(8);
  queue.add([1, 2, 3, 4].map((id) => held(id)));
  expect(queue.room(0)).toBe(4);
  queue.add([held(5)]);
  expect(queue.room(0)).toBe(0);
});

test('the faster it goes, the more is claimed ahead, up to a bound', () => {
  const queue = aQueue();
  for (let now = 0; now < 1000; now += 1) queue.begun.count(now);
  // a quarter of a second of 1,000 a second
  expect(queue.room(1000)).toBeGreaterThan(200);
  expect(queue.room(1000)).toBeLessThan(320);
  for (let now = 1000; now < 2000; now += 0.05) queue.begun.count(now);
  expect(queue.room(2000)).toBe(1004);
});

test('an endpoint that is only probed gets one at a time, and none before its time', () => {
  const queue = aQueue();
  for (let i = 0; i < 10; i += 1) queue.breaker.failed(0);
  expect(queue.room(0)).toBe(0);
  const then = queue.breaker.waitMs(0);
  expect(queue.room(then)).toBe(1);
  queue.add([held(1)]);
  expect([queue.room(then), queue.canBegin(0), queue.canBegin(then)]).toEqual([0, false, true]);
  queue.inFlight = 1;
  expect(queue.canBegin(then)).toBe(false);
});

test('nothing is claimed for a subscription that is not active', () => {
  const queue = aQueue();
  queue.isActive = false;
  expect(queue.room(0)).toBe(0);
});
