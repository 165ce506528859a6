/**
 * Walks over JSON text without building values: where does a value end, and is it JSON at all?
 *
 * Strict RFC 8259: no comments, no trailing commas, no NaN, no leading zeros, no raw control characters in strings,
 * nothing but space, tab, line feed and carriage return between tokens. The bytes must have been found to be UTF-8
 * beforehand (`isUtf8`). No recursion, no allocation, each byte looked at once; nothing here throws. The functions
 * return the offset behind what they passed over, or FAILED with the reason in `failure`.
 *
 * Bytes and not a string, because V8 keeps decoded texts above 1 MB outside its heap, and `charCodeAt` there is about
 * seven times slower than an array of bytes.
 */

export interface Scan {
  readonly bytes: Uint8Array;
  /** The deepest nesting that is passed over. */
  readonly depthMax: number;
  /** A string held something beyond printable ASCII: the text must be decoded as UTF-8. */
  odd: boolean;
  /** A string held a backslash. */
  escaped: boolean;
  /** A string held the escape of U+0000, which PostgreSQL's `json` accepts and its `text` does not. */
  nul: boolean;
  /** A string held an escaped surrogate without its other half: no character, and no text in PostgreSQL either. */
  lone: boolean;
  /** Why FAILED was returned: a sentence with the byte offset. */
  failure: string;
  tooDeep: boolean;
}

export const FAILED = -1;

export const BYTE = {
  quote: 0x22,
  comma: 0x2c,
  minus: 0x2d,
  dot: 0x2e,
  zero: 0x30,
  nine: 0x39,
  colon: 0x3a,
  openArray: 0x5b,
  closeArray: 0x5d,
  openObject: 0x7b,
  closeObject: 0x7d,
} as const;

const BACKSLASH = 0x5c;
const END = 256;

/** What a byte is inside a string. END has a place of its own, so that the loops need no other bound. */
const PLAIN = 0;
const ODD = 1;
const STOP = 2;
const KIND_IN_STRING = new Uint8Array(END + 1).fill(PLAIN);
KIND_IN_STRING.fill(STOP, 0, 0x20).fill(ODD, 0x7f, END);
for (const byte of [BYTE.quote, BACKSLASH, END]) {
  KIND_IN_STRING[byte] = STOP;
}

const HEX_VALUE = new Int8Array(END + 1).fill(-1);
for (let value = 0; value < 16; value += 1) {
  const digit = value.toString(16);
  HEX_VALUE[digit.charCodeAt(0)] = value;
  HEX_VALUE[digit.toUpperCase().charCodeAt(0)] = value;
}

const LITERALS = {
  t: Buffer.from('true'),
  f: Buffer.from('false'),
  n: Buffer.from('null'),
} as const;

/** The bracket that closes each open container. Shared: a value is scanned in one go, and nothing is left in it. */
let brackets = new Uint8Array(128);

export function createScan(bytes: Uint8Array, depthMax: number): Scan {
  if (brackets.length < depthMax) {
    brackets = new Uint8Array(depthMax);
  }
  return {
    bytes,
    depthMax,
    odd: false,
    escaped: false,
    nul: false,
    lone: false,
    failure: '',
    tooDeep: false,
  };
}

/** Forgets what was noted about strings, so that the notes belong to what is scanned next. */
export function clearNotes(scan: Scan): void {
  scan.odd = false;
  scan.escaped = false;
  scan.nul = false;
  scan.lone = false;
}

/** The byte at an offset, or a value that is no byte behind the end. */
export function byteAt(bytes: Uint8Array, at: number): number {
  return at < bytes.length ? (bytes[at] as number) : END;
}

export function skipSpace(bytes: Uint8Array, start: number): number {
  let at = start;
  for (;;) {
    const byte = byteAt(bytes, at);
    if (byte > 0x20 || (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09)) {
      return at;
    }
    at += 1;
  }
}

/** Notes what was expected at an offset. */
export function fail(scan: Scan, at: number, expected: string): typeof FAILED {
  const byte = byteAt(scan.bytes, at);
  scan.failure =
    byte === END
      ? `The text ends at byte ${at}, where ${expected} was expected.`
      : `Byte ${at} is 0x${byte.toString(16).padStart(2, '0')}, where ${expected} was expected.`;
  return FAILED;
}

/** Passes over a string; `start` is behind the opening quote, the result behind the closing one. */
export function skipString(scan: Scan, start: number): number {
  const bytes = scan.bytes;
  let at = start;
  let odd = PLAIN;
  for (;;) {
    let kind = kindAt(bytes, at);
    while (kind !== STOP) {
      odd |= kind;
      at += 1;
      kind = kindAt(bytes, at);
    }
    const byte = byteAt(bytes, at);
    if (byte === BYTE.quote) {
      break;
    }
    if (byte !== BACKSLASH) {
      return fail(scan, at, 'a character of a string (a control character must be escaped)');
    }
    at = skipEscape(scan, at);
    if (at === FAILED) {
      return FAILED;
    }
  }
  if (odd !== PLAIN) {
    scan.odd = true;
  }
  return at + 1;
}

function kindAt(bytes: Uint8Array, at: number): number {
  return KIND_IN_STRING[byteAt(bytes, at)] as number;
}

/** Passes over one escape, or over two that make one character; `start` is at the backslash. */
function skipEscape(scan: Scan, start: number): number {
  const bytes = scan.bytes;
  scan.escaped = true;
  switch (byteAt(bytes, start + 1)) {
    case 0x22: // "
    case 0x2f: // /
    case 0x5c: // \
    case 0x62: // b
    case 0x66: // f
    case 0x6e: // n
    case 0x72: // r
    case 0x74: // t
      return start + 2;
    case 0x75: // u
      break;
    default:
      return fail(scan, start + 1, 'one of the escapes that JSON knows');
  }
  const unit = hexAt(bytes, start + 2);
  if (unit < 0) {
    return fail(scan, start + 2, 'an escape of four hexadecimal digits');
  }
  if (unit === 0) {
    scan.nul = true;
  }
  if (unit >= 0xd800 && unit <= 0xdfff) {
    const paired = byteAt(bytes, start + 6) === BACKSLASH && byteAt(bytes, start + 7) === 0x75;
    const next = paired ? hexAt(bytes, start + 8) : -1;
    if (unit <= 0xdbff && next >= 0xdc00 && next <= 0xdfff) {
      return start + 12;
    }
    scan.lone = true;
  }
  return start + 6;
}

/** The value of four hexadecimal digits, negative if they are something else. */
function hexAt(bytes: Uint8Array, at: number): number {
  let value = 0;
  for (let i = at; i < at + 4; i += 1) {
    value = (value << 4) | (HEX_VALUE[byteAt(bytes, i)] as number);
  }
  return value;
}

/** Passes over the colon behind a member's name and the space around it. */
export function skipColon(scan: Scan, start: number): number {
  const at = skipSpace(scan.bytes, start);
  if (byteAt(scan.bytes, at) !== BYTE.colon) {
    return fail(scan, at, 'a colon');
  }
  return skipSpace(scan.bytes, at + 1);
}

/** Passes over any value; `start` is at its first byte. */
export function skipValue(scan: Scan, start: number): number {
  const bytes = scan.bytes;
  let depth = 0;
  let at = start;
  for (;;) {
    const byte = byteAt(bytes, at);
    if (byte !== BYTE.openObject && byte !== BYTE.openArray) {
      at = skipScalar(scan, at, byte);
    } else if (depth === scan.depthMax) {
      scan.tooDeep = true;
      scan.failure = `Byte ${at} opens an array or object nested deeper than ${depth}.`;
      return FAILED;
    } else {
      // The closing bracket is two code points behind the opening one. An empty container ends below.
      brackets[depth] = byte + 2;
      depth += 1;
      at = skipSpace(bytes, at + 1);
      const empty = byteAt(bytes, at) === byte + 2;
      if (!empty && byte === BYTE.openObject) {
        at = skipName(scan, at);
      }
      if (!empty && at !== FAILED) {
        continue;
      }
    }
    while (at !== FAILED && depth > 0) {
      at = skipSpace(bytes, at);
      const close = brackets[depth - 1] as number;
      const next = byteAt(bytes, at);
      if (next === BYTE.comma) {
        at = skipSpace(bytes, at + 1);
        at = close === BYTE.closeObject ? skipName(scan, at) : at;
        break;
      }
      at = next === close ? at + 1 : fail(scan, at, `a comma or ${String.fromCharCode(close)}`);
      depth -= 1;
    }
    if (at === FAILED || depth === 0) {
      return at;
    }
  }
}

/** Passes over a member's name, its colon and the space up to its value. */
function skipName(scan: Scan, start: number): number {
  if (byteAt(scan.bytes, start) !== BYTE.quote) {
    return fail(scan, start, 'a name in double quotes');
  }
  const end = skipString(scan, start + 1);
  return end === FAILED ? FAILED : skipColon(scan, end);
}

function skipScalar(scan: Scan, at: number, byte: number): number {
  if (byte === BYTE.quote) {
    return skipString(scan, at + 1);
  }
  if (byte === BYTE.minus || (byte >= BYTE.zero && byte <= BYTE.nine)) {
    return skipNumber(scan, at);
  }
  switch (byte) {
    case 0x74:
      return skipLiteral(scan, at, LITERALS.t);
    case 0x66:
      return skipLiteral(scan, at, LITERALS.f);
    case 0x6e:
      return skipLiteral(scan, at, LITERALS.n);
    default:
      return fail(scan, at, 'a value');
  }
}

function skipLiteral(scan: Scan, start: number, literal: Uint8Array): number {
  for (let i = 1; i < literal.length; i += 1) {
    if (byteAt(scan.bytes, start + i) !== literal[i]) {
      return fail(scan, start + i, 'the rest of true, false or null');
    }
  }
  return start + literal.length;
}

/** RFC 8259 section 6: any number of digits; what a double would make of them is nobody's business here. */
function skipNumber(scan: Scan, start: number): number {
  const bytes = scan.bytes;
  let at = byteAt(bytes, start) === BYTE.minus ? start + 1 : start;
  const whole = at;
  at = byteAt(bytes, at) === BYTE.zero ? at + 1 : skipDigits(bytes, at);
  if (at === whole) {
    return fail(scan, at, 'a digit');
  }
  if (byteAt(bytes, at) === BYTE.dot) {
    const fraction = at + 1;
    at = skipDigits(bytes, fraction);
    if (at === fraction) {
      return fail(scan, at, 'a digit');
    }
  }
  if ((byteAt(bytes, at) | 0x20) !== 0x65) {
    return at;
  }
  at += 1;
  const sign = byteAt(bytes, at);
  const exponent = sign === 0x2b || sign === BYTE.minus ? at + 1 : at;
  at = skipDigits(bytes, exponent);
  return at === exponent ? fail(scan, at, 'a digit') : at;
}

function skipDigits(bytes: Uint8Array, start: number): number {
  let at = start;
  for (;;) {
    const byte = byteAt(bytes, at);
    if (byte < BYTE.zero || byte > BYTE.nine) {
      return at;
    }
    at += 1;
  }
}
