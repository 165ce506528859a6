/**
 * Reads the body of POST /topics/{topic}/events: one event, or an array of them.
 *
 * `data` is never parsed and made again: its text is found in the body, looked over once, and handed on as it is, so
 * that 1.0, numbers beyond 2^53, the order of keys, duplicate keys and white space reach the receiver. The envelope
 * is ours and strict: what it does not know is a fault, never ignored.
 *
 * Faults are gathered, up to FAULTS_MAX. The first error of JSON itself and the first value that is nested too deep
 * end the reading, because nothing behind them can be told for sure. Hostile bodies cost one pass at most, and no
 * memory beyond the body's own size.
 *
 * The strings of an event may be slices that keep the whole body in memory: copy one that outlives its request.
 */
import { isUtf8 } from 'node:buffer';

import {
  fault,
  isFull,
  pointerTo,
  readObject,
  readString,
  refuseValue,
  scanFault,
} from './body-reader.ts';
import type { BodyFault, BodyReader } from './body-reader.ts';
import { MEMBER_BY_NAME, hintFor, mayBeExtension } from './event-attributes.ts';
import type { Member, TextMember } from './event-attributes.ts';
import {
  BYTE,
  FAILED,
  byteAt,
  clearNotes,
  createScan,
  fail,
  skipSpace,
  skipValue,
} from './json-scanner.ts';

/** An event as it was sent; words of the wire. An absent member is an absent field. */
export interface EventInput {
  type: string;
  id?: string;
  source?: string;
  subject?: string;
  time?: string;
  datacontenttype?: string;
  dataschema?: string;
  ordering_key?: string;
  traceparent?: string;
  tracestate?: string;
  extensions?: Record<string, ExtensionValue>;
  /** `delay_seconds`, to the millisecond. */
  delay_ms?: number;
  available_at?: string;
  /** The JSON text of `data`; absent and `null` are two things. */
  data?: string;
  /** Size in UTF-8: the text of `data`, the attributes, and names and values of `extensions`. */
  bytes: number;
}

export type ExtensionValue = string | number | boolean;

export interface BodyLimits {
  readonly eventBytesMax: number;
  readonly eventsMax: number;
  /** Nesting inside `data`: 1 is an array or object of scalars. */
  readonly depthMax: number;
}

export type PublishBody = { events: EventInput[]; single: boolean };

const EXTENSIONS_MAX = 64;
const DELAY_SECONDS_MAX = 2_592_000; // 30 days
const INTEGER_MIN = -2_147_483_648; // CloudEvents 1.0.2 section 2: an Integer has 32 bits
const INTEGER_MAX = 2_147_483_647;
const INTEGER = /^-?\d+$/;
/** Longer than any integer of 32 bits, true and false. */
const SCALAR_LENGTH_MAX = 12;
const TYPE_BIT = MEMBER_BY_NAME.get('type')?.bit ?? 0;
const BOTH_TIMES =
  (MEMBER_BY_NAME.get('delay_seconds')?.bit ?? 0) | (MEMBER_BY_NAME.get('available_at')?.bit ?? 0);

interface Reader extends BodyReader {
  readonly limits: BodyLimits;
  event: EventInput;
  /** Bits of the members that were there. */
  seen: number;
  extensionCount: number;
}

export function readPublishBody(
  body: Buffer,
  limits: BodyLimits,
): PublishBody | { faults: BodyFault[] } {
  const bytes =
    body.length >= 3 && body[0] === 0xef && body[1] === 0xbb && body[2] === 0xbf
      ? 'bom'
      : isUtf8(body);
  if (bytes !== true) {
    const detail =
      bytes === 'bom' ? 'The body begins with a byte order mark.' : 'The body is not valid UTF-8.';
    return { faults: [{ code: 'invalid_json', detail, pointer: '' }] };
  }
  const reader: Reader = {
    body,
    text: body.toString('latin1'),
    scan: createScan(body, limits.depthMax),
    faults: [],
    index: -1,
    size: 0,
    value: undefined,
    limits,
    event: { type: '', bytes: 0 },
    seen: 0,
    extensionCount: 0,
  };
  const events: EventInput[] = [];
  const start = skipSpace(body, 0);
  const single = byteAt(body, start) !== BYTE.openArray;
  let end = single ? readEvent(reader, start, events) : readArray(reader, start, events);
  if (end !== FAILED) {
    reader.index = -1;
    end = skipSpace(body, end);
    if (end < body.length) {
      fail(reader.scan, end, 'the end of the body');
      scanFault(reader, '');
    }
  }
  return reader.faults.length > 0 ? { faults: reader.faults } : { events, single };
}

function readArray(reader: Reader, start: number, events: EventInput[]): number {
  const { body, limits, scan } = reader;
  let at = skipSpace(body, start + 1);
  if (byteAt(body, at) === BYTE.closeArray) {
    fault(reader, '', 'An array of events must hold at least one.');
    return at + 1;
  }
  for (;;) {
    reader.index += 1;
    if (reader.index === limits.eventsMax) {
      reader.index = -1;
      return fault(
        reader,
        '',
        `A body must hold at most ${limits.eventsMax} events.`,
        'too_many_events',
      );
    }
    at = readEvent(reader, at, events);
    if (at === FAILED) {
      return FAILED;
    }
    at = skipSpace(body, at);
    const byte = byteAt(body, at);
    if (byte === BYTE.closeArray) {
      return at + 1;
    }
    if (byte !== BYTE.comma) {
      reader.index = -1;
      fail(scan, at, 'a comma or ]');
      return scanFault(reader, '');
    }
    at = skipSpace(body, at + 1);
  }
}

function readEvent(reader: Reader, start: number, events: EventInput[]): number {
  const { body, limits } = reader;
  if (byteAt(body, start) !== BYTE.openObject) {
    return refuseValue(reader, start, '', 'An event must be a JSON object.');
  }
  const event: EventInput = { type: '', bytes: 0 };
  reader.event = event;
  reader.seen = 0;
  reader.size = 0;
  const end = readObject(reader, start, '', readMember);
  if (end === FAILED) {
    return FAILED;
  }
  if ((reader.seen & TYPE_BIT) === 0) {
    fault(reader, '/type', 'An event must have a type.');
  }
  if ((reader.seen & BOTH_TIMES) === BOTH_TIMES) {
    fault(reader, '/available_at', 'An event must not have both delay_seconds and available_at.');
  }
  event.bytes = reader.size;
  if (event.bytes > limits.eventBytesMax) {
    fault(
      reader,
      '',
      `The event has ${event.bytes} bytes; at most ${limits.eventBytesMax} are taken.`,
      'event_too_large',
    );
  }
  events.push(event);
  return isFull(reader) ? FAILED : end;
}

function readMember(reader: Reader, member: Member | string, at: number): number {
  if (typeof member === 'string') {
    return refuseValue(
      reader,
      at,
      pointerTo('', member),
      `An event has no member ${JSON.stringify(member)}${hintFor(member)}.`,
    );
  }
  const pointer = `/${member.name}`;
  if ((reader.seen & member.bit) !== 0) {
    return refuseValue(reader, at, pointer, `${member.name} must be given once.`);
  }
  reader.seen |= member.bit;
  switch (member.kind) {
    case 'text':
      return readAttribute(reader, member, at, pointer);
    case 'data':
      return readData(reader, at, pointer);
    case 'delay':
      return readDelay(reader, at, pointer);
    case 'extensions':
      if (byteAt(reader.body, at) !== BYTE.openObject) {
        return refuseValue(reader, at, pointer, 'extensions must be an object.');
      }
      reader.event.extensions = {};
      reader.extensionCount = 0;
      return readObject(reader, at, pointer, readExtension);
    default:
      return assertNever(member);
  }
}

function readAttribute(reader: Reader, member: TextMember, at: number, pointer: string): number {
  if (byteAt(reader.body, at) !== BYTE.quote) {
    return refuseValue(reader, at, pointer, `${member.name} must be a string.`);
  }
  const end = readString(reader, at, member, pointer);
  if (reader.value !== undefined) {
    reader.event[member.name] = reader.value;
  }
  return end;
}

function readData(reader: Reader, at: number, pointer: string): number {
  const { body, event, scan, text } = reader;
  clearNotes(scan);
  const end = skipValue(scan, at);
  if (end === FAILED) {
    return scanFault(reader, pointer);
  }
  if (scan.nul) {
    fault(
      reader,
      pointer,
      'data must not hold the escape \\u0000: PostgreSQL has no such character.',
    );
  }
  if (scan.lone) {
    fault(reader, pointer, 'data must not hold half of a surrogate pair: it is no character.');
  }
  event.data = scan.odd ? body.toString('utf8', at, end) : text.slice(at, end);
  reader.size += end - at;
  return end;
}

function readDelay(reader: Reader, at: number, pointer: string): number {
  const end = skipValue(reader.scan, at);
  if (end === FAILED) {
    return scanFault(reader, pointer);
  }
  const seconds = isNumberStart(byteAt(reader.body, at))
    ? Number(reader.text.slice(at, end))
    : Number.NaN;
  if (seconds >= 0 && seconds <= DELAY_SECONDS_MAX) {
    reader.event.delay_ms = Math.round(seconds * 1000) + 0; // + 0 makes 0 of -0
  } else {
    fault(reader, pointer, `delay_seconds must be a number from 0 to ${DELAY_SECONDS_MAX}.`);
  }
  return end;
}

function readExtension(
  reader: Reader,
  member: Member | string,
  at: number,
  parent: string,
): number {
  const name = typeof member === 'string' ? member : member.name;
  const pointer = pointerTo(parent, name);
  if (!mayBeExtension(name)) {
    const detail = 'must have 1 to 20 characters of a-z and 0-9, and not be that of an attribute.';
    return refuseValue(reader, at, pointer, `The name of an extension ${detail}`);
  }
  const extensions = (reader.event.extensions ??= {});
  if (Object.hasOwn(extensions, name)) {
    return refuseValue(reader, at, pointer, `The extension ${name} must be given once.`);
  }
  reader.extensionCount += 1;
  if (reader.extensionCount === EXTENSIONS_MAX + 1) {
    fault(reader, parent, `An event must have at most ${EXTENSIONS_MAX} extensions.`);
  }
  const first = byteAt(reader.body, at);
  let end = at;
  let value: ExtensionValue | undefined;
  reader.size += name.length;
  if (first === BYTE.quote) {
    end = readString(reader, at, { name, min: 0, max: Infinity }, pointer);
    value = reader.value;
  } else {
    end = skipValue(reader.scan, at);
    if (end === FAILED) {
      return scanFault(reader, pointer);
    }
    value = scalarOf(reader.text.slice(at, Math.min(end, at + SCALAR_LENGTH_MAX)));
    reader.size += end - at;
    if (value === undefined) {
      fault(
        reader,
        pointer,
        `The extension ${name} must be a string, a boolean or an integer of 32 bits.`,
      );
    }
  }
  if (value !== undefined && reader.extensionCount <= EXTENSIONS_MAX) {
    extensions[name] = value;
  }
  return end;
}

function scalarOf(text: string): boolean | number | undefined {
  if (text === 'true' || text === 'false') {
    return text === 'true';
  }
  const value = INTEGER.test(text) ? Number(text) : Number.NaN;
  return value >= INTEGER_MIN && value <= INTEGER_MAX ? value + 0 : undefined;
}

function isNumberStart(byte: number): boolean {
  return byte === BYTE.minus || (byte >= BYTE.zero && byte <= BYTE.nine);
}

function assertNever(value: never): never {
  throw new Error(`unexpected ${JSON.stringify(value)}`);
}
