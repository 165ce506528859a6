import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { LookupCache } from '#runtime/lookup-cache.ts';

// the monotonic clock that times are kept by; timers are real
beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
afterEach(() => void vi.useRealTimers());

/** A cache over a table that a test fills, and how often it was asked. */
function setUp(options: { keptMs?: number; missingKeptMs?: number; entriesMax?: number } = {}) {
  const table = new Map<string, number>();
  const asked: string[] = [];
  const cache = new LookupCache<number>(
    async (name) => {
      asked.push(name);
      await delay(1);
      return table.get(name);
    },
    { keptMs: 60_000, missingKeptMs: 60_000, entriesMax: 100, ...options },
  );
  return { table, asked, cache };
}

test('remembers what it found, and that it found nothing', async () => {
  const { table, asked, cache } = setUp();
  table.set('a', 1);
  for (let n = 0; n < 3; n += 1) {
    expect(await cache.get('a')).toBe(1);
    expect(await cache.get('b')).toBeUndefined();
  }
  expect(asked).toEqual(['a', 'b']);
});

test('calls at the same time share one look-up', async () => {
  const { table, asked, cache } = setUp();
  table.set('a', 1);
  expect(await Promise.all([cache.get('a'), cache.get('a'), cache.get('a')])).toEqual([1, 1, 1]);
  expect(asked).toEqual(['a']);
});

test('asks again when its time is over', async () => {
  const { table, asked, cache } = setUp({ keptMs: 20, missingKeptMs: 20 });
  table.set('a', 1);
  await cache.get('a');
  await cache.get('b');
  vi.advanceTimersByTime(30);
  table.set('a', 2).set('b', 3);
  expect(await cache.get('a')).toBe(2);
  expect(await cache.get('b')).toBe(3);
  expect(asked).toHaveLength(4);
});

test('a value may be kept for less time than others', async () => {
  let value = 1;
  const cache = new LookupCache<number>(async () => value, {
    keptMs: 60_000,
    missingKeptMs: 60_000,
    entriesMax: 10,
    keptMsOf: () => 20,
  });
  await cache.get('a');
  value = 2;
  expect(await cache.get('a')).toBe(1);
  vi.advanceTimersByTime(30);
  expect(await cache.get('a')).toBe(2);
});

test('what is forgotten during its look-up is not remembered; who asks meanwhile asks anew', async () => {
  const { table, asked, cache } = setUp();
  table.set('a', 1);
  const old = cache.get('a');
  cache.forget('a');
  table.set('a', 2);
  const fresh = cache.get('a');
  await old;
  expect(await fresh).toBe(2);
  expect(await cache.get('a')).toBe(2);
  expect(asked).toHaveLength(2);
  const cleared = cache.get('b');
  cache.clear();
  await cleared;
  table.set('b', 3);
  expect(await cache.get('b')).toBe(3);
});

test('a look-up that fails is not remembered', async () => {
  let fails = true;
  const cache = new LookupCache<number>(
    async () => {
      if (fails) throw new Error('away');
      return 1;
    },
    { keptMs: 60_000, missingKeptMs: 60_000, entriesMax: 10 },
  );
  await expect(cache.get('a')).rejects.toThrow('away');
  fails = false;
  expect(await cache.get('a')).toBe(1);
});

test('holds so many, and drops what was used the longest time ago; what there is not drives out nothing', async () => {
  const { table, asked, cache } = setUp({ entriesMax: 3 });
  for (const name of ['a', 'b', 'c', 'd']) table.set(name, 1);
  for (const name of ['a', 'b', 'c']) await cache.get(name);
  await cache.get('a');
  for (let n = 0; n < 10; n += 1) await cache.get(`none-${n}`);
  await cache.get('d');
  asked.length = 0;
  for (const name of ['a', 'c', 'd']) await cache.get(name);
  expect(asked).toEqual([]);
  await cache.get('b');
  expect(asked).toEqual(['b']);
});

test('regression: a good API key is refused after a change of another, because it was forgotten that it is one', async () => {
  const { table, asked, cache } = setUp();
  table.set('a', 1).set('b', 2);
  await Promise.all([cache.get('a'), cache.get('b')]);
  cache.clear();
  expect(cache.wasFound('a')).toBe(true);
  table.set('a', 3).delete('b');
  expect(await cache.get('a')).toBe(3);
  expect(await cache.get('b')).toBeUndefined();
  expect(asked).toHaveLength(4);
  expect(cache.wasFound('b')).toBe(false);
});
