/**
 * What an attribute of an event may look like. Sources: CloudEvents 1.0.2 sections 2 (types), 3.1 and 3.2 (attributes,
 * names) and its distributed tracing extension; RFC 3339 (times); RFC 3986 (URI references); W3C Trace Context.
 * A check returns what is wrong with the value as the end of a sentence, or undefined.
 */

export type Check = (value: string) => string | undefined;

/** CloudEvents 1.0.2 section 2: characters that a String must not hold. Lone surrogates are found by the scanner. */
const FORBIDDEN = /[\u0000-\u001f\u007f-\u009f]|\p{Noncharacter_Code_Point}/u; // oxlint-disable-line no-control-regex

const URI_CHARACTERS = /^(?:[^\s<>"{}|\\^`%]|%[0-9A-Fa-f]{2})*$/;
const URI_SCHEME = /^[A-Za-z][A-Za-z0-9+.-]*:/;
const MEDIA_TYPE = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+\/[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*;.*)?$/;
const TRACEPARENT = /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/;
const TRACESTATE_MEMBER =
  /^(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})=[\u0020-\u002b\u002d-\u003c\u003e-\u007e]{0,255}[\u0021-\u002b\u002d-\u003c\u003e-\u007e]$/;
const PRINTABLE = /^[ -~]*$/;
const TRACESTATE_MEMBERS_MAX = 32;

const RFC3339 =
  /^(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))$/;
const TIME_LENGTH_MAX = 64;
/** PostgreSQL reads no offset of 16 hours or more; the largest in use is +14:00. */
const OFFSET_HOURS_MAX = 15;
const MINUTES_OF_DAY = 1440;
const FIRST_SECOND = -62_135_596_800; // 0001-01-01T00:00:00Z
const LAST_SECOND = 253_402_300_799; // 9999-12-31T23:59:59Z
/** A fraction from here on is rounded up to the next second: PostgreSQL keeps microseconds. */
const ROUNDS_UP = 0.999_999_5;

export function checkCharacters(value: string): string | undefined {
  return FORBIDDEN.test(value) ? 'must not hold control characters or noncharacters' : undefined;
}

/** URI-reference. Other than RFC 3986, letters beyond ASCII pass (an IRI), as many producers write them. */
function checkUriReference(value: string): string | undefined {
  return URI_CHARACTERS.test(value)
    ? undefined
    : 'must be a URI reference, without white space or any of <>"{}|\\^`';
}

function checkUri(value: string): string | undefined {
  return URI_SCHEME.test(value)
    ? checkUriReference(value)
    : 'must be a URI that begins with its scheme';
}

function checkMediaType(value: string): string | undefined {
  return MEDIA_TYPE.test(value) ? undefined : 'must be a media type such as application/json';
}

/** W3C Trace Context section 3.2; only version 00 exists. */
function checkTraceparent(value: string): string | undefined {
  return TRACEPARENT.test(value)
    ? undefined
    : 'must be a traceparent of version 00 in lower-case hex with ids that are not zero';
}

/** W3C Trace Context section 3.3. */
function checkTracestate(value: string): string | undefined {
  const members = value
    .split(',')
    .map((member) => member.trim())
    .filter((member) => member !== '');
  return PRINTABLE.test(value) &&
    members.length <= TRACESTATE_MEMBERS_MAX &&
    members.every((member) => TRACESTATE_MEMBER.test(member))
    ? undefined
    : `must be a tracestate: at most ${TRACESTATE_MEMBERS_MAX} members key=value with commas between them`;
}

/**
 * RFC 3339 date-time that PostgreSQL can keep and give back with a year of four digits. A leap second (:60 in the last
 * minute of a UTC day) passes, as RFC 3339 has it; PostgreSQL stores it as the first second of the next minute, and
 * takes none with a fraction. Other fractions of any length pass and are rounded to microseconds there.
 */
function checkTime(value: string): string | undefined {
  const parts = value.length <= TIME_LENGTH_MAX ? RFC3339.exec(value) : null;
  if (parts === null) {
    return 'must be an RFC 3339 time with an offset, such as 2025-01-31T12:00:00Z';
  }
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map(Number) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const offsetHours = Number(parts[9] ?? 0);
  const offsetMinutes = Number(parts[10] ?? 0);
  if (year === 0 || month === 0 || month > 12 || day === 0 || day > daysIn(year, month)) {
    return 'must be a date that exists, in the years 0001 to 9999';
  }
  if (hour > 23 || minute > 59 || second > 60) {
    return 'must be a time of day that exists';
  }
  if (offsetHours > OFFSET_HOURS_MAX || offsetMinutes > 59) {
    return `must have an offset of at most ${OFFSET_HOURS_MAX}:59`;
  }
  const offset = (offsetHours * 60 + offsetMinutes) * (parts[8] === '-' ? -1 : 1);
  const minutes = hour * 60 + minute - offset;
  const fraction = Number(parts[7] ?? 0);
  const lastMinute = (minutes + MINUTES_OF_DAY) % MINUTES_OF_DAY === MINUTES_OF_DAY - 1;
  if (second === 60 && (!lastMinute || fraction > 0)) {
    return 'must be a time of day that exists: second 60 belongs to 23:59 UTC, without a fraction';
  }
  const seconds = daysSinceEpoch(year, month, day) * 86_400 + minutes * 60 + second;
  const last = fraction >= ROUNDS_UP ? LAST_SECOND - 1 : LAST_SECOND;
  return seconds < FIRST_SECOND || seconds > last
    ? 'must lie in the years 0001 to 9999 of UTC'
    : undefined;
}

function daysIn(year: number, month: number): number {
  if (month === 2) {
    return (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0 ? 29 : 28;
  }
  return month === 4 || month === 6 || month === 9 || month === 11 ? 30 : 31;
}

/** Date.UTC takes the years 0 to 99 for 1900 to 1999, so a year 400 later is asked for: the calendar repeats. */
function daysSinceEpoch(year: number, month: number, day: number): number {
  return Date.UTC(year + 400, month - 1, day) / 86_400_000 - 146_097;
}

type TextName =
  | 'type'
  | 'id'
  | 'source'
  | 'subject'
  | 'time'
  | 'datacontenttype'
  | 'dataschema'
  | 'ordering_key'
  | 'traceparent'
  | 'tracestate'
  | 'available_at';

export interface TextMember {
  readonly kind: 'text';
  readonly name: TextName;
  /** In characters, as PostgreSQL counts them. */
  readonly max: number;
  readonly check?: Check;
}

export type Member = (
  | TextMember
  | { readonly kind: 'data' | 'extensions' | 'delay'; readonly name: string }
) & { readonly bit: number };

/** Everything that an event may have. */
const MEMBERS: readonly Member[] = (
  [
    { kind: 'text', name: 'type', max: 256 },
    { kind: 'text', name: 'id', max: 256 },
    { kind: 'text', name: 'source', max: 1024, check: checkUriReference },
    { kind: 'text', name: 'subject', max: 1024 },
    { kind: 'text', name: 'time', max: 64, check: checkTime },
    { kind: 'text', name: 'datacontenttype', max: 256, check: checkMediaType },
    { kind: 'text', name: 'dataschema', max: 1024, check: checkUri },
    { kind: 'text', name: 'ordering_key', max: 256 },
    { kind: 'text', name: 'traceparent', max: 55, check: checkTraceparent },
    { kind: 'text', name: 'tracestate', max: 512, check: checkTracestate },
    { kind: 'text', name: 'available_at', max: 64, check: checkTime },
    { kind: 'delay', name: 'delay_seconds' },
    { kind: 'data', name: 'data' },
    { kind: 'extensions', name: 'extensions' },
  ] as const
).map((member, index): Member => ({ ...member, bit: 1 << index }));

export const MEMBER_BY_NAME = new Map(MEMBERS.map((member) => [member.name as string, member]));
/** The same by the length of the name, to find one by its bytes. */
export const MEMBERS_BY_LENGTH = Array.from({ length: 16 }, (_, length) =>
  MEMBERS.filter((member) => member.name.length === length).map((member) => ({
    member,
    name: Buffer.from(member.name),
  })),
);

/** An extension travels beside the attributes, so it must not have the name of one. */
const EXTENSION_NAME = /^[a-z0-9]{1,20}$/;
const NOT_EXTENSIONS = new Set(
  (
    'specversion id source type subject time datacontenttype dataschema data ' +
    'traceparent tracestate partitionkey brokereventid constructor prototype'
  ).split(' '),
);

/** For names that people try; the rest is told where extensions go. */
const HINTS = new Map([
  ['specversion', 'leave it out: every event is handed out as CloudEvents 1.0'],
  ['data_base64', 'binary data is not taken yet: put base64 text into data'],
  ['partitionkey', 'the key is called ordering_key here'],
  ['brokereventid', 'the broker sets it'],
  ...MEMBERS.map(
    (member) => [member.name.replaceAll('_', ''), `it is spelled ${member.name}`] as const,
  ),
]);

export function mayBeExtension(name: string): boolean {
  return EXTENSION_NAME.test(name) && !NOT_EXTENSIONS.has(name);
}

/** What to add to the fault of a name that an event does not have. */
export function hintFor(name: string): string {
  const hint = HINTS.get(name) ?? HINTS.get(name.toLowerCase().replaceAll('_', ''));
  if (hint !== undefined) {
    return `: ${hint}`;
  }
  return mayBeExtension(name) ? ': put an extension attribute into extensions' : '';
}
