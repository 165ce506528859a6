import { expect, test } from 'vitest';
import { prefersHtml } from '../../apps/api/accept.ts';

test.each([
  // Chromium, Firefox
  ['text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8', true],
  ['text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8', true],
  ['text/html', true],
  ['TEXT/HTML; q=0.5', true],
  ['text/*', true],
  ['application/json;q=0.2, text/html;q=0.3', true],
  // curl, fetch
  ['*/*', false],
  [undefined, false],
  ['', false],
  ['application/json', false],
  ['application/json, text/html', false],
  ['text/html;q=0.3, application/json;q=0.4', false],
  ['text/html;q=0.95, application/json', false],
  ['text/html;q=0, */*', false],
  ['text/html;q=7', false],
  ['text/html;q=x', false],
  ['application/*, text/html;q=0.9', false],
])('%s: %s', (accept, expected) => {
  expect(prefersHtml(accept)).toBe(expected);
});
