import { expect, test } from 'vitest';
import { Window } from '../../apps/worker/window.ts';

test('it begins small, grows with each good answer while events wait for it, and ends at three quarters of the slots', () => {
  const window = new Window(40);
  expect(window.size).toBe(4);
  window.worked(4, 0);
  // the slots of the worker are what is short
  window.worked(2, 100);
  expect(window.size).toBe(4);
  // a burst of answers doubles it
  for (let answers = 0; answers < 4; answers += 1) window.worked(4, 1);
  expect(window.size).toBe(8);
  for (let i = 0; i < 100; i += 1) window.worked(window.size, 1);
  expect(window.size).toBe(30);
});

test('what gets no answer makes it smaller, and one is always left', () => {
  const window = new Window(40);
  for (let i = 0; i < 100; i += 1) window.worked(window.size, 1);
  window.unanswered();
  expect(window.size).toBe(28);
  for (let i = 0; i < 100; i += 1) window.unanswered();
  expect(window.size).toBe(1);
});

test.each([
  [1, 1],
  [2, 1],
  [4, 3],
  [8, 6],
])('of %i slots one subscription gets %i', (slots, most) => {
  const window = new Window(slots);
  for (let i = 0; i < 20; i += 1) window.worked(window.size, 1);
  expect(window.size).toBe(most);
});
