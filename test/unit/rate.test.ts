import { expect, test } from 'vitest';
import { Rate } from '../../apps/worker/rate.ts';

function counted(perMs: number, fromMs: number, toMs: number, rate = new Rate()): Rate {
  for (let now = fromMs; now < toMs; now += 1 / perMs) rate.count(now);
  return rate;
}

test('a steady rate is told as it is, wherever in its span it is asked for', () => {
  const rate = new Rate();
  let counts = 0;
  for (const now of [5000, 5100, 5250, 5600]) {
    counted(2, counts, now, rate);
    counts = now;
    expect(rate.perSecond(now)).toBeGreaterThan(1600);
    expect(rate.perSecond(now)).toBeLessThan(2400);
  }
});

test('nothing was counted: none', () => {
  expect(new Rate().perSecond(12_345)).toBe(0);
});

test('what was long ago counts for nothing', () => {
  const rate = counted(2, 0, 5000);
  expect(rate.perSecond(7000)).toBe(0);
});
