import { expect, test } from 'vitest';
import { retryAfterMs } from '../../apps/worker/retry-after.ts';

const nowMs = Date.UTC(2025, 0, 31, 12, 0, 0);
const hour = 3_600_000;

test.each([
  ['0', 0],
  ['1', 1000],
  ['120', 120_000],
  ['3600', hour],
  ['3601', hour],
  ['999999999999999999999999', hour],
  ['-1', undefined],
  ['+1', undefined],
  ['1.5', undefined],
  ['1e3', undefined],
  ['soon', undefined],
  ['', undefined],
  [' ', undefined],
  ['1, 2', undefined],
  // the three forms of an HTTP-date
  ['Fri, 31 Jan 2025 12:00:30 GMT', 30_000],
  ['Friday, 31-Jan-25 12:00:30 GMT', 30_000],
  ['Fri Jan 31 12:00:30 2025', 30_000],
  ['Sat Feb  1 12:00:30 2025', hour],
  // a year of two digits that is far ahead is one of old
  ['Sunday, 06-Nov-94 08:49:37 GMT', 0],
  ['Fri, 31 Jan 2025 11:59:59 GMT', 0],
  ['Fri, 31 Jan 2125 12:00:00 GMT', hour],
  ['2025-01-31T12:00:30Z', undefined],
  ['Fri, 31 Jan 2025 12:00:30 CET', undefined],
  ['Fri, 31 Foo 2025 12:00:30 GMT', undefined],
])('%j is %j ms', (value, expected) => {
  expect(retryAfterMs(value, { date: undefined, nowMs })).toBe(expected);
});

test('no header is no delay', () => {
  expect(retryAfterMs(undefined, { date: undefined, nowMs })).toBeUndefined();
});

test('a date counts from the answer’s own, whatever our clock says; one that cannot be read does not count', () => {
  const value = 'Tue, 01 Jan 1980 00:01:00 GMT';
  expect(retryAfterMs(value, { date: 'Tue, 01 Jan 1980 00:00:00 GMT', nowMs })).toBe(60_000);
  expect(retryAfterMs(value, { date: 'yesterday', nowMs })).toBe(0);
});
