import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { Loop, startLoop } from '#runtime/loop.ts';
import { eventually } from '../support/eventually.ts';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }));
afterEach(() => void vi.useRealTimers());

/** Collects the waits that a loop begins, so that a test can go on when it has begun the next. */
function waits() {
  const seen: number[] = [];
  let notify: (() => void) | undefined;
  return {
    seen,
    onWait(waitMs: number): void {
      seen.push(waitMs);
      notify?.();
    },
    async reached(count: number): Promise<void> {
      while (seen.length < count) {
        await new Promise<void>((resolve) => {
          notify = resolve;
        });
      }
    },
  };
}

const failing = (): Error => new Error('database is away');

describe('ticks', () => {
  test('the first comes at once, the next after the interval', async () => {
    const waiting = waits();
    const onTick = vi.fn();
    const loop = startLoop({ name: 'reap', intervalMs: 1000, jitter: 0, onTick, ...waiting });
    await waiting.reached(1);
    expect(onTick).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(999);
    expect(onTick).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(onTick).toHaveBeenCalledTimes(2);
    await loop.stop();
  });

  test('waits are shortened at random by at most the jitter', async () => {
    const waiting = waits();
    const loop = startLoop({ name: 'x', intervalMs: 1000, jitter: 0.2, onTick() {}, ...waiting });
    for (let count = 1; count <= 50; count += 1) {
      await waiting.reached(count);
      await vi.advanceTimersByTimeAsync(1000);
    }
    await loop.stop();
    expect(Math.min(...waiting.seen)).toBeGreaterThanOrEqual(800);
    expect(Math.max(...waiting.seen)).toBeLessThanOrEqual(1000);
    expect(new Set(waiting.seen).size).toBeGreaterThan(10);
  });

  test('never overlap, and a wake-up in the middle of one starts the next at once', async () => {
    const waiting = waits();
    let running = 0;
    let most = 0;
    const gates: (() => void)[] = [];
    const loop = startLoop({
      name: 'x',
      intervalMs: 1000,
      async onTick() {
        running += 1;
        most = Math.max(most, running);
        await new Promise<void>((resolve) => gates.push(resolve));
        running -= 1;
      },
      ...waiting,
    });
    await eventually(() => expect(gates).toHaveLength(1));
    loop.wake();
    loop.wake();
    expect(gates).toHaveLength(1);
    gates[0]!();
    await eventually(() => expect(gates).toHaveLength(2));
    expect(waiting.seen).toEqual([0]);
    gates[1]!();
    await waiting.reached(2);
    expect(gates).toHaveLength(2);
    expect(most).toBe(1);
    await loop.stop();
  });

  test("'again' starts the next at once", async () => {
    const waiting = waits();
    let left = 3;
    const onTick = vi.fn(() => (left-- > 0 ? ('again' as const) : undefined));
    const loop = startLoop({ name: 'x', intervalMs: 1000, jitter: 0, onTick, ...waiting });
    await waiting.reached(4);
    expect(waiting.seen).toEqual([0, 0, 0, 1000]);
    await loop.stop();
  });

  test('a source of wake-ups is subscribed to, and left at the end', async () => {
    const waiting = waits();
    const onTick = vi.fn();
    const unsubscribe = vi.fn();
    let wakeUp = (): void => {};
    const loop = startLoop({
      name: 'x',
      intervalMs: 60_000,
      onTick,
      wake(wake) {
        wakeUp = wake;
        return unsubscribe;
      },
      ...waiting,
    });
    await waiting.reached(1);
    wakeUp();
    await waiting.reached(2);
    expect(onTick).toHaveBeenCalledTimes(2);
    expect(unsubscribe).not.toHaveBeenCalled();
    await loop.stop();
    expect(unsubscribe).toHaveBeenCalledTimes(1);
    wakeUp();
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('failures', () => {
  test('are retried with a wait that doubles up to the cap, and a wake-up does not shorten it', async () => {
    const waiting = waits();
    const onTick = vi.fn(() => {
      throw failing();
    });
    const onError = vi.fn();
    const loop = startLoop({
      name: 'x',
      intervalMs: 10,
      jitter: 0,
      errorBackoffMs: { first: 100, max: 500 },
      onTick,
      onError,
      ...waiting,
    });
    for (let count = 1; count <= 5; count += 1) {
      await waiting.reached(count);
      loop.wake();
      expect(onTick).toHaveBeenCalledTimes(count);
      await vi.advanceTimersByTimeAsync(waiting.seen.at(-1)!);
    }
    await waiting.reached(6);
    expect(waiting.seen).toEqual([100, 200, 400, 500, 500, 500]);
    expect(onError).toHaveBeenLastCalledWith(failing(), { name: 'x', failures: 6, retryInMs: 500 });
    await loop.stop();
  });

  test('are logged when they begin and when they are over, not each time', async () => {
    const waiting = waits();
    const logger = { warn: vi.fn(), info: vi.fn() };
    let fails = 3;
    const loop = startLoop({
      name: 'reap',
      intervalMs: 10,
      jitter: 0,
      logger,
      async onTick() {
        if (fails-- > 0) throw failing();
      },
      ...waiting,
    });
    for (let count = 1; count <= 6; count += 1) {
      await waiting.reached(count);
      await vi.advanceTimersByTimeAsync(waiting.seen.at(-1)!);
    }
    expect(logger.warn).toHaveBeenCalledTimes(1);
    expect(logger.info.mock.calls).toEqual([
      [{ loop: 'reap', failures: 3, down_ms: 700 }, 'loop recovered'],
    ]);
    await loop.stop();
  });

  test('what onError throws ends the loop and rejects `finished`', async () => {
    const onTick = vi.fn(() => {
      throw failing();
    });
    const loop = startLoop({
      name: 'x',
      intervalMs: 10,
      onTick,
      onError(error) {
        throw error;
      },
    });
    await expect(loop.finished).rejects.toThrow('database is away');
    expect(onTick).toHaveBeenCalledTimes(1);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('the end', () => {
  test('stop waits for the running tick, whose signal it aborts, and is safe twice', async () => {
    let ended = false;
    const began = Promise.withResolvers<void>();
    const loop = startLoop({
      name: 'x',
      intervalMs: 10,
      async onTick(signal) {
        began.resolve();
        await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
        await Promise.resolve();
        ended = true;
        throw failing();
      },
      onError: () => expect.unreachable('an aborted tick may fail'),
    });
    await began.promise;
    await Promise.all([loop.stop(), loop.stop()]);
    expect(ended).toBe(true);
    await loop.stop();
    expect(vi.getTimerCount()).toBe(0);
  });

  test('stop in the middle of a wait ends it', async () => {
    const waiting = waits();
    const loop = startLoop({ name: 'x', intervalMs: 60_000, onTick() {}, ...waiting });
    await waiting.reached(1);
    await loop.stop();
    expect(vi.getTimerCount()).toBe(0);
  });

  test('stop before start, or right after it, is safe, and no tick runs', async () => {
    const onTick = vi.fn();
    const loop = new Loop({ name: 'x', intervalMs: 10, onTick });
    await loop.stop();
    loop.start();
    await loop.finished;
    await startLoop({ name: 'x', intervalMs: 10, onTick }).stop();
    await startLoop({ name: 'x', intervalMs: 10, onTick, signal: AbortSignal.abort() }).finished;
    expect(onTick).not.toHaveBeenCalled();
  });

  test('an aborted signal ends it', async () => {
    const waiting = waits();
    const controller = new AbortController();
    const { signal } = controller;
    const loop = startLoop({ name: 'x', intervalMs: 60_000, signal, onTick() {}, ...waiting });
    await waiting.reached(1);
    controller.abort();
    await loop.finished;
    expect(vi.getTimerCount()).toBe(0);
  });

  test('hundreds of starts, wake-ups and stops leave nothing behind', async () => {
    const controller = new AbortController();
    for (let round = 0; round < 300; round += 1) {
      const waiting = waits();
      const { signal } = controller;
      await using loop = startLoop({
        name: 'x',
        intervalMs: 1000,
        signal,
        onTick() {},
        ...waiting,
      });
      if (round % 3 > 0) await waiting.reached(1);
      if (round % 3 > 1) loop.wake();
    }
    expect(vi.getTimerCount()).toBe(0);
  });
});
