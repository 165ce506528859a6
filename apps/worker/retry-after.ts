const DELAY_MAX_MS = 3_600_000;

const MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split(' ');

/** RFC 9110 section 5.6.7: the form that is sent, and the two of old that must be understood. */
const IMF_FIXDATE =
  /^[A-Z][a-z]{2}, (?<day>\d\d) (?<month>[A-Z][a-z]{2}) (?<year>\d{4}) (?<hour>\d\d):(?<minute>\d\d):(?<second>\d\d) GMT$/;
const RFC_850 =
  /^[A-Z][a-z]+day, (?<day>\d\d)-(?<month>[A-Z][a-z]{2})-(?<year>\d\d) (?<hour>\d\d):(?<minute>\d\d):(?<second>\d\d) GMT$/;
const ASCTIME =
  /^[A-Z][a-z]{2} (?<month>[A-Z][a-z]{2}) (?<day>[ \d]\d) (?<hour>\d\d):(?<minute>\d\d):(?<second>\d\d) (?<year>\d{4})$/;

export interface AnswerClock {
  /** The answer's own `Date`. */
  readonly date: string | undefined;
  /** Milliseconds since 1970, for an answer without one. */
  readonly nowMs: number;
}

/**
 * `Retry-After` (RFC 9110 section 10.2.3) as milliseconds from the answer on: never negative, at most an hour. A date
 * counts from the answer's own, so that a clock that is wrong over there does no harm. Undefined for what is neither
 * seconds nor a date.
 */
export function retryAfterMs(value: string | undefined, clock: AnswerClock): number | undefined {
  if (value === undefined) return undefined;
  if (/^\d+$/.test(value)) return Math.min(Number(value) * 1000, DELAY_MAX_MS);
  const at = httpDateMs(value, clock.nowMs);
  if (at === undefined) return undefined;
  const from =
    (clock.date === undefined ? undefined : httpDateMs(clock.date, clock.nowMs)) ?? clock.nowMs;
  return Math.min(Math.max(Math.round(at - from), 0), DELAY_MAX_MS);
}

function httpDateMs(text: string, nowMs: number): number | undefined {
  const parts = (IMF_FIXDATE.exec(text) ?? RFC_850.exec(text) ?? ASCTIME.exec(text))?.groups;
  const month = MONTHS.indexOf(parts?.['month'] ?? '');
  if (parts === undefined || month < 0) return undefined;
  const year = fullYear(parts['year'] ?? '', nowMs);
  const [day, hour, minute, second] = ['day', 'hour', 'minute', 'second'].map((name) =>
    Number(parts[name]),
  );
  return Date.UTC(year, month, day, hour, minute, second);
}

/** A year of two digits is the last with these digits that is not more than 50 years ahead. */
function fullYear(digits: string, nowMs: number): number {
  if (digits.length === 4) return Number(digits);
  const thisYear = new Date(nowMs).getUTCFullYear();
  const year = thisYear - (thisYear % 100) + Number(digits);
  return year > thisYear + 50 ? year - 100 : year;
}
