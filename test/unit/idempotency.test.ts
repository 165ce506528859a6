import { expect, test } from 'vitest';
import { eventKey, readIdempotencyKey, requestKey } from '../../apps/api/publish/idempotency.ts';
import type { EventInput } from '../../apps/api/publish/publish-body.ts';

const event: EventInput = { type: 't', bytes: 1 };
const hex = (bytes: Buffer): string => bytes.toString('hex');

test('no two pairs of source and id have one key, and none is that of a request', () => {
  const pairs = [
    ['a', 'bc'],
    ['ab', 'c'],
    ['a:b', 'c'],
    ['a', 'b:c'],
    ['1:a', 'b'],
  ] as const;
  const keys = pairs.map(([source, id]) => hex(eventKey({ ...event, source }, id, '/d').key));
  keys.push(
    hex(requestKey('a:bc', Buffer.from('')).key),
    hex(requestKey('event:1:a:bc', Buffer.from('')).key),
  );
  expect(new Set(keys).size).toBe(keys.length);
  expect(keys.every((key) => key.length === 32)).toBe(true);
  expect(hex(eventKey(event, 'x', '/d').key)).toBe(
    hex(eventKey({ ...event, source: '/d' }, 'x', '/e').key),
  );
});

test('the fingerprint changes with the content, and not with the trace, the delay or the order of extensions', () => {
  const of = (changes: Partial<EventInput>): string =>
    hex(eventKey({ ...event, ...changes }, 'x', '/d').fingerprint);
  const others = [
    of({}),
    of({ type: 'u' }),
    of({ subject: 's' }),
    of({ time: 's' }),
    of({ datacontenttype: 's' }),
    of({ dataschema: 's' }),
    of({ ordering_key: 's' }),
    of({ extensions: { a: '1' } }),
    of({ extensions: { a: 1 } }),
    of({ data: '' }),
    of({ data: '1' }),
    of({ data: '1.0' }),
  ];
  expect(new Set(others).size).toBe(others.length);
  expect(of({ traceparent: 'x', tracestate: 'y', delay_ms: 5, available_at: 'z' })).toBe(of({}));
  expect(of({ extensions: { a: 1, b: 2 } })).toBe(of({ extensions: { b: 2, a: 1 } }));
});

test.each([
  ['abc', 'abc'],
  ['"abc"', 'abc'],
  ['"a \\"b\\\\"', 'a "b\\'],
  ['x'.repeat(255), 'x'.repeat(255)],
  ['x'.repeat(256), undefined],
  ['', undefined],
  ['""', undefined],
  ['"a', undefined],
  ['"a"b"', undefined],
  ['"a\\n"', undefined],
  ['a b', undefined],
  ['é', undefined],
])('the header %j means the key %j', (header, key) => {
  expect(readIdempotencyKey(header)).toBe(key);
});
