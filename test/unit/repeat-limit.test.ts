import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { createLogger } from '#runtime/logger.ts';
import { commonPart, RepeatLimit } from '#runtime/repeat-limit.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function limitedLogger(options: ConstructorParameters<typeof RepeatLimit>[0]) {
  const repeats = new RepeatLimit(options);
  const lines: { level: string; msg: string; [member: string]: unknown }[] = [];
  const destination = { write: (line: string) => void lines.push(JSON.parse(line)) };
  const logger = createLogger({
    service: 'api',
    instance: 'i',
    level: 'debug',
    destination,
    repeats,
  });
  return { repeats, logger, lines, shown: () => lines.map(({ msg }) => msg) };
}

const summary = 'lines like others were not written';

describe('warnings and errors', () => {
  test('are written so often in a window; then one line says how many were not', () => {
    const { logger, lines, shown } = limitedLogger({ linesMax: 3, windowMs: 1000 });
    for (let n = 0; n < 10; n += 1) logger.warn({ subscription: `s-${n}` }, 'it fails');
    expect(shown()).toEqual(['it fails', 'it fails', 'it fails']);
    vi.advanceTimersByTime(999);
    expect(lines).toHaveLength(3);
    vi.advanceTimersByTime(1);
    expect(lines.slice(3)).toMatchObject([
      { level: 'warn', msg: summary, suppressed: 7, of: 'it fails', window_ms: 1000 },
    ]);
    logger.warn('it fails');
    vi.advanceTimersByTime(1000);
    expect(shown().slice(4)).toEqual(['it fails']);
  });

  test('with another message, level, code or outcome are others', () => {
    const { logger, lines } = limitedLogger({ linesMax: 1 });
    for (let n = 0; n < 2; n += 1) {
      logger.warn('a');
      logger.warn('b');
      logger.error('a');
      logger.warn({ code: 'x' }, 'a');
      logger.warn({ code: 'y' }, 'a');
      logger.warn({ outcome: 'y' }, 'a');
      logger.error(new Error('c'));
    }
    expect(lines).toHaveLength(7);
  });

  test('of children are those of their parent', () => {
    const { logger, lines } = limitedLogger({ linesMax: 2 });
    const child = logger.child({ part: 'framework' }, { level: 'warn' });
    for (let n = 0; n < 5; n += 1) {
      logger.warn('a');
      child.warn('a');
    }
    expect(lines).toHaveLength(2);
  });

  test.each([
    ['attempt 1 of 10', 'attempt 7 of 10'],
    ['no "orders" here', 'no "stock" here'],
    ["no 'orders' here", "no 'stock' here"],
  ])('%s and %s are one message', (one, other) => {
    expect(commonPart(40, one, {})).toBe(commonPart(40, other, {}));
  });
});

test('what ends the process, and what is no warning, is always written', () => {
  const { logger, lines } = limitedLogger({ linesMax: 1 });
  for (let n = 0; n < 50; n += 1) {
    logger.fatal('the end');
    logger.info('hello');
    logger.debug('hello');
  }
  expect(lines).toHaveLength(150);
});

test('a process that ends says what it has not written', () => {
  const { logger, repeats, shown } = limitedLogger({ linesMax: 1 });
  logger.warn('a');
  logger.warn('a');
  logger.warn('b');
  repeats.flush();
  expect(shown()).toEqual(['a', 'b', summary]);
  vi.advanceTimersByTime(60_000);
  expect(shown()).toHaveLength(3);
});

test('each suppressed line is counted, also those before anybody counted', () => {
  const { logger, repeats } = limitedLogger({ linesMax: 1 });
  for (let n = 0; n < 4; n += 1) logger.warn('a');
  const counts: number[] = [];
  repeats.onSuppressed((count) => void counts.push(count));
  logger.warn('a');
  expect(counts).toEqual([3, 1]);
});

test('memory is bounded: messages beyond the limit share one window', () => {
  const { logger, lines } = limitedLogger({ linesMax: 2, messagesMax: 10 });
  const name = (n: number): string => String.fromCodePoint(97 + (n % 26), 97 + Math.floor(n / 26));
  for (let n = 0; n < 400; n += 1) logger.warn(name(n));
  expect(lines).toHaveLength(12);
  expect(vi.getTimerCount()).toBe(11);
  vi.advanceTimersByTime(10_000);
  expect(lines.slice(12)).toMatchObject([{ msg: summary, suppressed: 388 }]);
  expect(vi.getTimerCount()).toBe(0);
});

test('a suppressed line costs little: nothing of it is turned into text', () => {
  const { logger } = limitedLogger({ linesMax: 1 });
  let read = 0;
  const member = {
    toJSON: () => {
      read += 1;
      return 'x';
    },
  };
  for (let n = 0; n < 100; n += 1) logger.warn({ member }, 'a');
  expect(read).toBe(1);
});
