import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { generateApiKey, matchesPattern } from '../../apps/api/auth.ts';
import { FailureLimit, networkOf } from '../../apps/api/failure-limit.ts';

// the monotonic clock that times are kept by; timers are real
beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
afterEach(() => void vi.useRealTimers());

describe('a pattern', () => {
  test.each([
    ['orders', 'orders', true],
    ['orders', 'orders2', false],
    ['*', '', true],
    ['*', 'anything', true],
    ['orders*', 'orders', true],
    ['orders*', 'orders.eu', true],
    ['orders*', 'my-orders', false],
    ['*orders', 'my-orders', true],
    ['a*b', 'ab', true],
    ['a*b', 'a', false],
    ['ab*ba', 'aba', false],
    ['a*b*c', 'a-b-b-c', true],
    ['a*b*c', 'a-c-b', false],
    ['a**b', 'a.b', true],
    ['a.c', 'abc', false],
    ['[a-z]', 'b', false],
  ])('%s and %s: %s', (pattern, text, fits) => {
    expect(matchesPattern(pattern, text)).toBe(fits);
  });

  test('takes no longer for being malicious', () => {
    const began = performance.now();
    matchesPattern('*a'.repeat(60), 'a'.repeat(128));
    matchesPattern(`${'a*'.repeat(60)}b`, 'a'.repeat(128));
    expect(performance.now() - began).toBeLessThan(100);
  });
});

test('keys are random, and known by their hash', () => {
  const [one, two] = [generateApiKey(), generateApiKey()];
  expect(one.key).toMatch(/^ebk_[A-Za-z0-9_-]{43}$/);
  expect(one.key).not.toBe(two.key);
  expect(one.hash).toHaveLength(32);
  expect(one.key.startsWith(one.prefix)).toBe(true);
  expect(one.prefix).toHaveLength(10);
});

describe('the limit on failures', () => {
  test('holds for one network and one window', async () => {
    const limit = new FailureLimit({ max: 2, windowMs: 50 });
    limit.note('192.0.2.1');
    expect(limit.waitMs('192.0.2.1')).toBe(0);
    limit.note('192.0.2.1');
    expect(limit.waitMs('192.0.2.1')).toBeGreaterThan(0);
    expect(limit.waitMs('192.0.2.2')).toBe(0);
    vi.advanceTimersByTime(60);
    expect(limit.waitMs('192.0.2.1')).toBe(0);
    limit.note('192.0.2.1');
    expect(limit.waitMs('192.0.2.1')).toBe(0);
  });

  test('remembers a bounded number of them', () => {
    const limit = new FailureLimit({ max: 1, windowMs: 60_000, addressesMax: 2 });
    for (const address of ['192.0.2.1', '192.0.2.2', '192.0.2.3']) limit.note(address);
    expect(limit.waitMs('192.0.2.1')).toBe(0);
    expect(limit.waitMs('192.0.2.3')).toBeGreaterThan(0);
  });

  test.each([
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
    ['2001:db8::1', '2001:db8:0:0'],
    ['2001:0db8:0001:0002::', '2001:db8:1:2'],
    ['fe80::1%eth0', 'fe80:0:0:0'],
    ['::1', '0:0:0:0'],
  ])('%s belongs to %s', (address, network) => {
    expect(networkOf(address)).toBe(network);
  });
});
