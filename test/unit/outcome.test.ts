import { expect, test } from 'vitest';
import type { EndpointResult } from '../../apps/worker/endpoint-client.ts';
import { classify } from '../../apps/worker/outcome.ts';

function anAnswer(status: number, retryAfterMs?: number): EndpointResult {
  return { kind: 'answer', status, retryAfterMs, response: Buffer.alloc(0), durationMs: 1 };
}

/** By outcome and what is said of the endpoint: what was answered, with `Retry-After: 7` and without; the last column with `retry_client_errors`. */
const TABLE: readonly (readonly [string, readonly number[], string, string, string])[] = [
  [
    'success',
    [200, 201, 202, 203, 204, 205, 206, 207, 226, 299],
    'acked works',
    'acked works',
    'acked works',
  ],
  [
    'redirect',
    [300, 301, 302, 303, 304, 307, 308, 399],
    'nacked fails',
    'nacked fails',
    'nacked fails',
  ],
  ['may pass', [404, 408], 'nacked fails', 'nacked fails', 'nacked fails'],
  ['conflict', [409], 'nacked works', 'nacked works', 'nacked works'],
  ['too many requests', [429], 'nacked fails', 'deferred busy', 'nacked fails'],
  ['who asks', [401, 403, 407], 'rejected fails', 'rejected fails', 'nacked fails'],
  [
    'the event',
    [400, 402, 405, 406, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 499],
    'rejected works',
    'rejected works',
    'nacked works',
  ],
  ['gone', [410], 'deferred gone', 'deferred gone', 'deferred gone'],
  [
    'server error',
    [500, 501, 502, 504, 505, 507, 511, 599],
    'nacked fails',
    'nacked fails',
    'nacked fails',
  ],
  ['unavailable', [503], 'nacked fails', 'deferred busy', 'nacked fails'],
  ['no status of HTTP', [0, 99, 600, 999], 'nacked fails', 'nacked fails', 'nacked fails'],
];

const rows = TABLE.flatMap(([what, statuses, plain, later, retrying]) =>
  statuses.map((status) => [status, what, plain, later, retrying] as const),
);

test.each(rows)('%i (%s) is %s, with Retry-After %s, with retry_client_errors %s', (...row) => {
  const [status, , plain, later, retrying] = row;
  const told = (result: EndpointResult, retryClientErrors = false): string => {
    const { outcome, delayMs, error, endpoint } = classify(result, { retryClientErrors });
    expect(error).toBe(outcome === 'acked' ? undefined : `HTTP ${status}`);
    const delays = { busy: 7000, gone: 0, works: undefined, fails: undefined };
    expect(delayMs).toBe(delays[endpoint]);
    return `${outcome} ${endpoint}`;
  };
  expect([
    told(anAnswer(status)),
    told(anAnswer(status, 7000)),
    told(anAnswer(status), true),
  ]).toEqual([plain, later, retrying]);
});

test('no answer is a nack that says why', () => {
  const result = {
    kind: 'failure',
    error: 'timeout after 15000 ms',
    reason: 'timeout',
    durationMs: 15_000,
  } as const;
  expect(classify(result, { retryClientErrors: false })).toEqual({
    outcome: 'nacked',
    error: 'timeout after 15000 ms',
    endpoint: 'fails',
  });
});

test('Retry-After: 0 asks for nothing: the backoff holds', () => {
  expect(classify(anAnswer(503, 0), { retryClientErrors: false })).toEqual({
    outcome: 'nacked',
    error: 'HTTP 503',
    endpoint: 'fails',
  });
});
