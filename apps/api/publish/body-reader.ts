/**
 * Walks over the objects of a request's body with the scanner, and keeps account of faults: what is wrong, and where.
 * The strings that are ours (names, attributes) become strings here; the text of `data` never does.
 */
import { MEMBERS_BY_LENGTH, MEMBER_BY_NAME, checkCharacters } from './event-attributes.ts';
import type { Check, Member } from './event-attributes.ts';
import {
  BYTE,
  FAILED,
  byteAt,
  clearNotes,
  fail,
  skipColon,
  skipSpace,
  skipString,
  skipValue,
} from './json-scanner.ts';
import type { Scan } from './json-scanner.ts';

export type BodyFaultCode =
  | 'invalid_json'
  | 'invalid_event'
  | 'event_too_large'
  | 'too_many_events';

export interface BodyFault {
  code: BodyFaultCode;
  detail: string;
  /** RFC 6901: '' is the whole body, '/type' a member of a single event, '/3/type' one of the fourth in an array. */
  pointer: string;
}

const FAULTS_MAX = 20;

/** The longest name that is decoded and shown again; no name that means something comes near it, escapes included. */
const NAME_BYTES_MAX = 128;
/** A character takes at most two escaped halves of a surrogate pair. */
const BYTES_PER_CHARACTER_MAX = 12;

export interface BodyReader {
  readonly body: Buffer;
  /** The body, one character per byte: ASCII parts of it are cut out without decoding. */
  readonly text: string;
  readonly scan: Scan;
  readonly faults: BodyFault[];
  /** Place of the event in an array, -1 for a single one. */
  index: number;
  /** Bytes of the event so far, as UTF-8. */
  size: number;
  /** What readString found, undefined if that was a fault. */
  value: string | undefined;
}

export interface StringRule {
  readonly name: string;
  readonly min?: number;
  readonly max: number;
  readonly check?: Check;
}

export type ReadMember<R extends BodyReader> = (
  reader: R,
  name: string | Member,
  at: number,
  pointer: string,
) => number;

/** Walks over the members of the object at `start`: an event, or the extensions of one. */
export function readObject<R extends BodyReader>(
  reader: R,
  start: number,
  pointer: string,
  read: ReadMember<R>,
): number {
  const { body, scan } = reader;
  let at = skipSpace(body, start + 1);
  if (byteAt(body, at) === BYTE.closeObject) {
    return at + 1;
  }
  for (;;) {
    if (byteAt(body, at) !== BYTE.quote) {
      fail(scan, at, 'a name in double quotes');
      return scanFault(reader, pointer);
    }
    clearNotes(scan);
    const end = skipString(scan, at + 1);
    const value = end === FAILED ? FAILED : skipColon(scan, end);
    if (value === FAILED) {
      return scanFault(reader, pointer);
    }
    const name = nameBetween(reader, at + 1, end - 1);
    at =
      name === undefined
        ? refuseValue(
            reader,
            value,
            pointer,
            `A name of ${end - at - 2} bytes is none that an event has.`,
          )
        : read(reader, name, value, pointer);
    if (at === FAILED || isFull(reader)) {
      return FAILED;
    }
    at = skipSpace(body, at);
    const byte = byteAt(body, at);
    if (byte === BYTE.closeObject) {
      return at + 1;
    }
    if (byte !== BYTE.comma) {
      fail(scan, at, 'a comma or }');
      return scanFault(reader, pointer);
    }
    at = skipSpace(body, at + 1);
  }
}

/** A name between two quotes; a name of the envelope is found without making a string of it. */
function nameBetween(reader: BodyReader, start: number, end: number): Member | string | undefined {
  const { body, scan, text } = reader;
  const length = end - start;
  for (const { member, name } of MEMBERS_BY_LENGTH[length] ?? []) {
    let i = 0;
    while (i < length && body[start + i] === name[i]) {
      i += 1;
    }
    if (i === length) {
      return member;
    }
  }
  if (length > NAME_BYTES_MAX) {
    return undefined;
  }
  const name = scan.escaped || scan.odd ? decode(reader, start, end) : text.slice(start, end);
  return MEMBER_BY_NAME.get(name) ?? name;
}

/** Reads the string whose opening quote is at `at` into `reader.value`, and adds its size to the event. */
export function readString(
  reader: BodyReader,
  at: number,
  rule: StringRule,
  pointer: string,
): number {
  const { scan, text } = reader;
  reader.value = undefined;
  clearNotes(scan);
  const end = skipString(scan, at + 1);
  if (end === FAILED) {
    return scanFault(reader, pointer);
  }
  const length = end - at - 2;
  const plain = !scan.escaped && !scan.odd;
  let wrong: string | undefined;
  if (length < (rule.min ?? 1)) {
    wrong = 'must not be empty';
  } else if (length > rule.max && (plain || length > rule.max * BYTES_PER_CHARACTER_MAX)) {
    wrong = `must have at most ${rule.max} characters`;
  } else {
    const value = plain ? text.slice(at + 1, end - 1) : decode(reader, at + 1, end - 1);
    wrong = (plain ? undefined : wrongCharacters(scan, value, rule.max)) ?? rule.check?.(value);
    reader.size += plain ? length : Buffer.byteLength(value);
    reader.value = wrong === undefined ? value : undefined;
  }
  if (wrong !== undefined) {
    fault(reader, pointer, `${rule.name} ${wrong}.`);
  }
  return end;
}

function wrongCharacters(scan: Scan, value: string, max: number): string | undefined {
  if (scan.lone) {
    return 'must not hold half of a surrogate pair';
  }
  if (value.length > max && Array.from(value).length > max) {
    return `must have at most ${max} characters`;
  }
  return checkCharacters(value);
}

/** The string between two quotes that the scanner has passed over. */
function decode(reader: BodyReader, start: number, end: number): string {
  const { body, scan } = reader;
  return scan.escaped
    ? (JSON.parse(body.toString('utf8', start - 1, end + 1)) as string)
    : body.toString('utf8', start, end);
}

/** Passes over a value that is a fault whatever it holds. */
export function refuseValue(
  reader: BodyReader,
  at: number,
  pointer: string,
  detail: string,
): number {
  const end = skipValue(reader.scan, at);
  if (end === FAILED) {
    return scanFault(reader, pointer);
  }
  fault(reader, pointer, detail);
  return end;
}

/** The fault that ends the reading: no JSON, or nested too deep. */
export function scanFault(reader: BodyReader, pointer: string): typeof FAILED {
  const { failure, tooDeep } = reader.scan;
  return fault(reader, pointer, failure, tooDeep ? 'invalid_event' : 'invalid_json');
}

export function fault(
  reader: BodyReader,
  pointer: string,
  detail: string,
  code: BodyFaultCode = 'invalid_event',
): typeof FAILED {
  if (!isFull(reader)) {
    reader.faults.push({
      code,
      detail,
      pointer: reader.index < 0 ? pointer : `/${reader.index}${pointer}`,
    });
  }
  return FAILED;
}

export function isFull(reader: BodyReader): boolean {
  return reader.faults.length >= FAULTS_MAX;
}

export function pointerTo(parent: string, name: string): string {
  return `${parent}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}
