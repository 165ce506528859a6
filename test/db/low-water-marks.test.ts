import { expect, test } from 'vitest';
import type { ClaimedEvent } from '#db/claim.ts';
import { LowWaterMarks } from '#db/low-water-marks.ts';

const dueAt = (...times: string[]) => times.map((due_at) => ({ due_at }) as ClaimedEvent);
const make = () => new LowWaterMarks({ lookBackMs: 10_000, lookBackEveryMs: 2000, keptMs: 60_000 });

test('the first claim is from the head, the next from the latest that was seen, less a second', () => {
  const marks = make();
  expect(marks.next(1, 0)).toBeUndefined();
  // fractions have no fixed length, so their order is not that of text
  marks.saw(
    1,
    dueAt('2025-01-01T00:00:10.5Z', '2025-01-01T00:00:10.52Z', '2025-01-01T00:00:10Z'),
    0,
  );
  expect(marks.next(1, 100)).toBe('2025-01-01T00:00:09.520Z');
  expect(marks.next(2, 100)).toBeUndefined();
});

test('every two seconds a claim starts further back, and the next one does not', () => {
  const marks = make();
  marks.set(1, '2025-01-01T00:01:00Z', 0);
  expect(marks.next(1, 1000)).toBe('2025-01-01T00:01:00.000Z');
  expect(marks.next(1, 2600)).toBe('2025-01-01T00:00:50.000Z');
  expect(marks.next(1, 2700)).toBe('2025-01-01T00:01:00.000Z');
});

test('a wake-up lowers the start of one claim, also when an earlier claim ends meanwhile', () => {
  const marks = make();
  marks.set(1, '2025-01-01T00:01:00Z', 0);
  marks.lower(1, '2025-01-01T00:00:20Z', 0);
  marks.lower(1, '2025-01-01T00:00:30Z', 0);
  marks.saw(1, dueAt('2025-01-01T00:02:00Z'), 10);
  expect(marks.next(1, 20)).toBe('2025-01-01T00:00:20.000Z');
  expect(marks.next(1, 30)).toBe('2025-01-01T00:01:59.000Z');
  marks.lower(1, '-infinity', 30);
  expect(marks.next(1, 40)).toBeUndefined();
});

test('marks of idle subscriptions are dropped', () => {
  const marks = make();
  for (let id = 1; id <= 100; id += 1) marks.set(id, '2025-01-01T00:00:00Z', 0);
  marks.set(101, '2025-01-01T00:00:00Z', 50_000);
  expect(marks.next(1, 61_000)).toBeUndefined();
  expect(marks.size).toBe(1);
  expect(marks.isOld(101, 55_000)).toBe(false);
  expect(marks.isOld(101, 61_000)).toBe(true);
});

test('what wake-ups asked for of subscriptions that nobody claims is dropped too, also while nobody claims at all', () => {
  const marks = make();
  for (let id = 1; id <= 100; id += 1) marks.lower(id, '2025-01-01T00:00:00Z', 0);
  marks.lower(101, '2025-01-01T00:00:00Z', 50_000);
  expect(marks.size).toBe(101);
  marks.lower(102, '2025-01-01T00:00:00Z', 61_000);
  expect(marks.size).toBe(2);
});

test('a start that was asked for and dropped is not lost: the next claim is from the head', () => {
  const marks = make();
  marks.lower(1, '2025-01-01T00:00:20Z', 0);
  // a claim that had begun before
  marks.saw(1, dueAt('2025-01-01T00:02:00Z'), 5000);
  expect(marks.next(1, 62_000)).toBeUndefined();
});
