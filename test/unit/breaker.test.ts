import { expect, test } from 'vitest';
import { Breaker } from '../../apps/worker/breaker.ts';

const probeMs = { first: 1000, max: 4000 };

function failedTimes(times: number, now = 0): Breaker {
  const breaker = new Breaker({ probeMs });
  for (let i = 0; i < times; i += 1) breaker.failed(now);
  return breaker;
}

test('nine failures in a row leave it closed, the tenth opens it, once', () => {
  const breaker = failedTimes(9);
  expect([breaker.isOpen, breaker.waitMs(0)]).toEqual([false, 0]);
  expect(breaker.failed(0)).toBe(true);
  expect(breaker.isOpen).toBe(true);
  expect(breaker.failed(0)).toBe(false);
});

test('a success in between begins the count anew', () => {
  const breaker = failedTimes(9);
  breaker.succeeded();
  for (let i = 0; i < 9; i += 1) expect(breaker.failed(0)).toBe(false);
  expect(breaker.isOpen).toBe(false);
});

test('probes come at growing distances, up to a longest one, and a success ends them', () => {
  const breaker = failedTimes(10);
  let now = 0;
  const waits: number[] = [];
  for (let i = 0; i < 6; i += 1) {
    waits.push(breaker.waitMs(now));
    now += breaker.waitMs(now);
    expect(breaker.waitMs(now)).toBe(0);
    breaker.failed(now);
  }
  const longest = [1000, 2000, 4000, 4000, 4000, 4000];
  for (const [index, wait] of waits.entries()) {
    expect(wait).toBeGreaterThanOrEqual(longest[index]! * 0.75);
    expect(wait).toBeLessThanOrEqual(longest[index]!);
  }
  breaker.succeeded();
  expect([breaker.isOpen, breaker.waitMs(now)]).toEqual([false, 0]);
});

test('what was in flight when it opened does not push the probe away', () => {
  const breaker = failedTimes(10);
  const waitMs = breaker.waitMs(0);
  for (let i = 0; i < 50; i += 1) breaker.failed(i);
  expect(breaker.waitMs(0)).toBe(waitMs);
});

test('a receiver that names a time is left alone until then, and the earlier of two times counts for nothing', () => {
  const breaker = new Breaker({ probeMs });
  breaker.hold(100, 5000);
  breaker.hold(200, 10);
  expect(breaker.waitMs(200)).toBe(4900);
  expect([breaker.isOpen, breaker.waitMs(5100)]).toEqual([false, 0]);
});

test('a success that was under way does not end the time that the receiver asked for; a change of the subscription does', () => {
  const breaker = new Breaker({ probeMs });
  breaker.hold(0, 5000);
  breaker.succeeded();
  expect(breaker.waitMs(1000)).toBe(4000);
  breaker.reset();
  expect(breaker.waitMs(1000)).toBe(0);
});
