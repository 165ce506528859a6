import { createHash, randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { createSealer, SealError } from '#runtime/sealer.ts';

const key = Buffer.alloc(32, 7).toString('base64');
const plain = Buffer.from('thirty-two bytes of a secret ...');

describe('with a key', () => {
  const sealer = createSealer(key);

  test('what is sealed is opened again, and shows nothing of itself', () => {
    const { keyId, sealed } = sealer.seal(plain, 'secret 1');
    expect(sealer.open(sealed, keyId, 'secret 1')).toEqual(plain);
    expect(sealed.includes(plain.subarray(0, 4))).toBe(false);
    // the same twice is not the same
    expect(sealer.seal(plain, 'secret 1').sealed).not.toEqual(sealed);
  });

  test('nothing at all can be sealed too', () => {
    const { keyId, sealed } = sealer.seal(Buffer.alloc(0), 'c');
    expect(sealer.open(sealed, keyId, 'c')).toEqual(Buffer.alloc(0));
  });

  test('the id of the key is the beginning of its SHA-256', () => {
    const digest = createHash('sha256').update(Buffer.alloc(32, 7)).digest('hex');
    expect(sealer.seal(plain, 'c').keyId).toBe(digest.slice(0, 8));
  });

  test('it opens in its own context only', () => {
    const { keyId, sealed } = sealer.seal(plain, 'secret 1');
    expect(() => sealer.open(sealed, keyId, 'secret 2')).toThrow(SealError);
  });

  test('a bit that was changed anywhere is noticed', () => {
    const { keyId, sealed } = sealer.seal(plain, 'c');
    for (let at = 0; at < sealed.length; at += 1) {
      const changed = Buffer.from(sealed);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(() => sealer.open(changed, keyId, 'c'), `byte ${at}`).toThrow(/was changed/);
    }
    expect(() => sealer.open(sealed.subarray(0, 27), keyId, 'c')).toThrow(/too short/);
  });

  test('another key is told by its id', () => {
    const other = createSealer(randomBytes(32).toString('base64'));
    const { keyId, sealed } = other.seal(plain, 'c');
    expect(() => sealer.open(sealed, keyId, 'c')).toThrow(
      `sealed with another key (id ${keyId}; the one here is `,
    );
  });

  test('what was kept without a key is opened as it is', () => {
    expect(sealer.open(plain, null, 'c')).toEqual(plain);
  });
});

describe('without a key', () => {
  const sealer = createSealer(undefined);

  test('it keeps the plain bytes, and says so', () => {
    expect(sealer.seal(plain, 'c')).toEqual({ keyId: null, sealed: plain });
    expect(sealer.open(plain, null, 'c')).toEqual(plain);
  });

  test('what was sealed with a key is refused', () => {
    const { keyId, sealed } = createSealer(key).seal(plain, 'c');
    expect(() => sealer.open(sealed, keyId, 'c')).toThrow(
      `sealed with a key (id ${keyId}), and there is none here`,
    );
  });
});

describe('with several keys', () => {
  const [first, second, third] = [1, 2, 3].map((n) => Buffer.alloc(32, n).toString('base64'));
  const sealer = createSealer(`${first}, ${second}`);

  test('the first seals', () => {
    const { keyId, sealed } = sealer.seal(plain, 'c');
    expect(keyId).toBe(sealer.keyId);
    expect(keyId).toBe(createSealer(first).keyId);
    expect(createSealer(first).open(sealed, keyId, 'c')).toEqual(plain);
    expect(() => createSealer(second).open(sealed, keyId, 'c')).toThrow(SealError);
  });

  test('all open', () => {
    for (const key of [first, second]) {
      const { keyId, sealed } = createSealer(key).seal(plain, 'c');
      expect(sealer.open(sealed, keyId, 'c')).toEqual(plain);
    }
    expect(sealer.open(plain, null, 'c')).toEqual(plain);
  });

  test('another is told by its id, beside those that are there', () => {
    const other = createSealer(third);
    const { keyId, sealed } = other.seal(plain, 'c');
    const here = `${createSealer(first).keyId}, ${createSealer(second).keyId}`;
    expect(() => sealer.open(sealed, keyId, 'c')).toThrow(
      `sealed with another key (id ${other.keyId}; those here are ${here})`,
    );
  });

  test('the same twice is refused', () => {
    expect(() => createSealer(`${first},${second},${first}`)).toThrow(
      /two of the keys are the same/,
    );
  });
});

test.each(['', `${key},`, 'c2hvcnQ=', Buffer.alloc(33).toString('base64')])(
  '%j is no key',
  (text) => {
    expect(() => createSealer(text)).toThrow(SealError);
  },
);
