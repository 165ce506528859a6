import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { followLogLevel, type LogLevelSetting } from '#runtime/log-level.ts';
import { createLogger } from '#runtime/logger.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function aProcess(level = 'info') {
  const lines: Record<string, unknown>[] = [];
  const destination = { write: (line: string) => void lines.push(JSON.parse(line)) };
  const logger = createLogger({ service: 'worker', instance: 'i', level, destination });
  const listeners = new Set<(kind: string) => void>();
  let answer: () => LogLevelSetting | undefined = () => undefined;
  const asked: string[] = [];
  const follow = () =>
    followLogLevel({
      logger,
      level,
      changes: {
        onChange: (listener) => {
          listeners.add(listener);
          return () => void listeners.delete(listener);
        },
        onReconnect: () => () => undefined,
      },
      read: async (service) => {
        asked.push(service);
        return answer();
      },
    });
  return {
    logger,
    lines,
    asked,
    follow,
    listeners,
    set: (next: typeof answer): void => {
      answer = next;
    },
    hear: async (kind: string) => {
      for (const listener of listeners) listener(kind);
      await vi.advanceTimersByTimeAsync(1);
    },
  };
}

test('a level that is set is followed at once, until it ends by itself; each change is logged once', async () => {
  const { logger, lines, asked, follow, set, hear, listeners } = aProcess();
  const loop = follow();
  await vi.advanceTimersByTimeAsync(1);
  expect(asked).toEqual(['worker']);
  expect(lines).toEqual([]);
  let endsAt = performance.now() + 5000;
  set(() => {
    const remainingMs = endsAt - performance.now();
    return remainingMs > 0 ? { level: 'debug', remainingMs } : undefined;
  });
  await hear('topic');
  expect(logger.level).toBe('info');
  await hear('log_level');
  expect(logger.level).toBe('debug');
  logger.debug('detail');
  await hear('log_level');
  await vi.advanceTimersByTimeAsync(5100);
  expect(logger.level).toBe('info');
  logger.debug('detail');
  expect(lines).toMatchObject([
    { level: 'info', msg: 'log level changed', before: 'info', after: 'debug' },
    { level: 'debug', msg: 'detail' },
    { level: 'info', msg: 'log level changed', before: 'debug', after: 'info' },
  ]);
  endsAt = performance.now() + 1000;
  await hear('log_level');
  expect(logger.level).toBe('debug');
  await loop.stop();
  expect(listeners.size).toBe(0);
});

test('a word that was lost costs half a minute', async () => {
  const { logger, follow, set } = aProcess();
  await using _loop = follow();
  await vi.advanceTimersByTimeAsync(1);
  set(() => ({ level: 'trace', remainingMs: 60_000 }));
  await vi.advanceTimersByTimeAsync(30_000);
  expect(logger.level).toBe('trace');
});

test('with the database away it ends in time all the same', async () => {
  const { logger, follow, set } = aProcess('warn');
  set(() => ({ level: 'debug', remainingMs: 20_000 }));
  await using _loop = follow();
  await vi.advanceTimersByTimeAsync(1);
  expect(logger.level).toBe('debug');
  set(() => {
    throw new Error('away');
  });
  await vi.advanceTimersByTimeAsync(19_000);
  expect(logger.level).toBe('debug');
  await vi.advanceTimersByTimeAsync(2000);
  expect(logger.level).toBe('warn');
});

test.each(['fatal', 'warn', 'debug'])(
  'the change to %s is said whatever it hides',
  async (level) => {
    const { logger, lines, follow, set } = aProcess('error');
    set(() => ({ level, remainingMs: 1000 }));
    await using _loop = follow();
    await vi.advanceTimersByTimeAsync(1);
    expect(logger.level).toBe(level);
    expect(lines).toMatchObject([{ level: 'info', before: 'error', after: level }]);
  },
);

test('several that follow with one logger say it once', async () => {
  const { lines, follow, set } = aProcess();
  set(() => ({ level: 'debug', remainingMs: 1000 }));
  await using _one = follow();
  await using _other = follow();
  await vi.advanceTimersByTimeAsync(1);
  expect(lines).toHaveLength(1);
});
