import fc from 'fast-check';
import { expect, test } from 'vitest';
import { decodeLeaseId, encodeLeaseId, publishedAtMs } from '#db/lease.ts';

const id = fc.integer({ min: 1, max: 0x7fffffff });
const lease = fc.record({
  topic_id: id,
  subscription_id: id,
  retention_class: fc.constantFrom(1, 24, 168, 720, 2160, 8760),
  publish_id: fc.bigInt({ min: 0n, max: (1n << 53n) - 1n }).map(String),
  entry_id: fc.bigInt({ min: 1n, max: (1n << 63n) - 1n }).map(String),
  generation: id,
  ordinal: fc.integer({ min: 0, max: 999 }),
});

test('a lease id says all of its lease', () => {
  fc.assert(
    fc.property(lease, (each) => {
      expect(decodeLeaseId(encodeLeaseId(each))).toEqual(each);
    }),
  );
});

test('whatever else comes is no lease, and nothing is thrown', () => {
  const texts = [
    '',
    '-',
    '1-1-1-1-1-1',
    '1-1-1-1-1-1-1-1',
    '1-1-1-1-1-1-zz',
    'A-1-1-1-1-1-1',
    'zzzzzz-1-1-1-1-1-1',
    '1-1-1-zzzzzzzzzzzzz-1-1-1',
    "1-1-1-1-1-1-1'",
  ];
  for (const text of texts) expect(decodeLeaseId(text), text).toBeUndefined();
  fc.assert(
    fc.property(
      fc.string(),
      (text) =>
        decodeLeaseId(text) === undefined ||
        encodeLeaseId(decodeLeaseId(text) as never) === text.replace(/(^|-)0+(?=[0-9a-z])/g, '$1'),
    ),
  );
});

test('a publish id says to the millisecond when that was', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 41 - 1 }),
      fc.integer({ min: 0, max: 4095 }),
      (ms, seq) => {
        const publishId = ((BigInt(ms) << 12n) | BigInt(seq)).toString();
        expect(publishedAtMs(publishId)).toBe(1_735_689_600_000 + ms);
      },
    ),
  );
});
