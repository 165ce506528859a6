import { expect, test } from 'vitest';
import type { EndpointResult } from '../../apps/worker/endpoint-client.ts';
import { classify } from '../../apps/worker/outcome.ts';

function anAnswer(status: number, retryAfterMs?: number): EndpointResult {
  return { kind: 'answer', status, retryAfterMs, response: Buffer.alloc(0), durationMs: 1 };
}

/** By outcome: what was answered, with `Retry-After: 7` and without; the last column with `retry_client_errors`. */
const TABLE: readonly (readonly [string, readonly number[], string, string, string])[] = [
  ['success', [200, 201, 202, 203, 204, 205, 206, 207, 226, 299], 'acked', 'acked', 'acked'],
  ['redirect', [300, 301, 302, 303, 304, 307, 308, 399], 'nacked', 'nacked', 'nacked'],
  ['may pass', [404, 408, 409], 'nacked', 'nacked', 'nacked'],
  ['too many requests', [429], 'nacked', 'deferred', 'nacked'],
  [
    'final',
    [400, 401, 402, 403, 405, 406, 407, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 499],
    'rejected',
    'rejected',
    'nacked',
  ],
  ['gone', [410], 'nacked disables', 'nacked disables', 'nacked disables'],
  ['server error', [500, 501, 502, 504, 505, 507, 511, 599], 'nacked', 'nacked', 'nacked'],
  ['unavailable', [503], 'nacked', 'deferred', 'nacked'],
  ['no status of HTTP', [0, 99, 600, 999], 'nacked', 'nacked', 'nacked'],
];

const rows = TABLE.flatMap(([what, statuses, plain, later, retrying]) =>
  statuses.map((status) => [status, what, plain, later, retrying] as const),
);

test.each(rows)('%i (%s) is %s, with Retry-After %s, with retry_client_errors %s', (...row) => {
  const [status, , plain, later, retrying] = row;
  const told = (result: EndpointResult, retryClientErrors = false): string => {
    const { outcome, delayMs, error, disables } = classify(result, { retryClientErrors });
    expect(error).toBe(outcome === 'acked' ? undefined : `HTTP ${status}`);
    expect(delayMs).toBe(outcome === 'deferred' ? 7000 : undefined);
    return disables ? `${outcome} disables` : outcome;
  };
  expect([
    told(anAnswer(status)),
    told(anAnswer(status, 7000)),
    told(anAnswer(status), true),
  ]).toEqual([plain, later, retrying]);
});

test('no answer is a nack that says why', () => {
  const result = { kind: 'failure', error: 'timeout after 15000 ms', durationMs: 15_000 } as const;
  expect(classify(result, { retryClientErrors: false })).toEqual({
    outcome: 'nacked',
    error: 'timeout after 15000 ms',
    disables: false,
  });
});

test('Retry-After: 0 is a deferral that is due at once', () => {
  expect(classify(anAnswer(503, 0), { retryClientErrors: false })).toMatchObject({
    outcome: 'deferred',
    delayMs: 0,
  });
});
