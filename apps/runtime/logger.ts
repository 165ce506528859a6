import { createRequire } from 'node:module';
import {
  type DestinationStream,
  type Logger,
  type LoggerOptions,
  pino,
  stdTimeFunctions,
} from 'pino';
import { commonPart, type RepeatLimit } from './repeat-limit.ts';
import { traceMembers } from './tracing.ts';
import { version } from './version.ts';

export type { Logger };

export type LoggerSettings = {
  readonly service: string;
  readonly instance: string;
  readonly level: string;
  /** Where lines go; standard output unless set, and then pretty when that is a terminal. */
  readonly destination?: DestinationStream;
  /** Of warnings and errors, not of what ends the process; without one all are written. */
  readonly repeats?: RepeatLimit | undefined;
  /** Texts that are never written, wherever they come from. */
  readonly secrets?: readonly string[] | undefined;
};

const redacted = '[redacted]';

// Members that are never written, at any depth and in any case: keys, and what applications publish.
const secretMembers = new Set(
  (
    'authorization proxy-authorization cookie set-cookie headers push_headers token ' +
    'api_key apikey x-api-key admin_api_key adminapikey password secret sealed signature ' +
    'database_url databaseurl database_direct_url databasedirecturl ' +
    'secret_encryption_key secretencryptionkey idempotency_key idempotencykey idempotency-key ' +
    'data data_binary payload body'
  ).split(' '),
);

// Of errors: PostgreSQL quotes whole rows in `detail`, and drivers keep the parameters of a call.
const secretErrorMembers = new Set(
  'detail where parameters params values query internalQuery'.split(' '),
);

const mayHoldSecret = new RegExp(`"(?:${[...secretMembers].join('|')}|stack)":`, 'i');

/**
 * A logger that writes one JSON object per line, with `service`, `instance` and `version`, and inside a span its ids. Keys,
 * payloads and passwords in connection strings are replaced before they are written.
 */
export function createLogger(settings: LoggerSettings): Logger {
  const { repeats } = settings;
  const hideSecrets = secretHider(settings.secrets);
  const options: LoggerOptions = {
    level: settings.level,
    base: { service: settings.service, instance: settings.instance, version },
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    mixin: traceMembers,
    // Not pino's `redact`: with wildcards a line takes 45 µs, so 3 µs unless there is a secret.
    hooks: {
      streamWrite: (line) => hideSecrets(hideMembers(line)),
      ...(repeats && { logMethod: limitRepeats(repeats) }),
    },
  };
  const destination = settings.destination ?? prettyDestination();
  return destination === undefined ? pino(options) : pino(options, destination);
}

const { warn, fatal } = pino.levels.values as { readonly warn: number; readonly fatal: number };

/** A hook of pino's: what it does not pass on is not written. */
function limitRepeats(
  repeats: RepeatLimit,
): NonNullable<NonNullable<LoggerOptions['hooks']>['logMethod']> {
  return function (this: Logger, given, method, level) {
    const write = (...line: Parameters<typeof method>): void => method.apply(this, line);
    if (level < warn || level >= fatal) return write(...given);
    const [members, text] = given as [unknown, unknown?];
    const message = messageOf(members, text);
    const summarize = (suppressed: number, windowMs: number): void =>
      write({ suppressed, of: message, window_ms: windowMs }, 'lines like others were not written');
    const isAdmitted = repeats.admits(commonPart(level, message, members), summarize);
    return isAdmitted ? write(...given) : undefined;
  };
}

function messageOf(members: unknown, text: unknown): string {
  if (typeof text === 'string') return text;
  if (members instanceof Error) return members.message;
  return typeof members === 'string' ? members : '';
}

function hideMembers(line: string): string {
  if (!mayHoldSecret.test(line)) return line;
  return `${JSON.stringify(JSON.parse(line, hideMember))}\n`;
}

function hideMember(key: string, value: unknown): unknown {
  if (secretMembers.has(key.toLowerCase())) return redacted;
  if (typeof value !== 'object' || value === null || !('stack' in value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, member]: [string, unknown]) => [
      name,
      secretErrorMembers.has(name) ? redacted : member,
    ]),
  );
}

/** Shorter ones would be found in words that have nothing to do with them. */
const secretCharactersMin = 8;

/**
 * Replaces these texts wherever they stand, as they are and as JSON and URLs write them, and what `hideSecretsInText`
 * replaces.
 */
export function secretHider(secrets: readonly string[] = []): (text: string) => string {
  const forms = secrets
    .filter((secret) => secret.length >= secretCharactersMin)
    .flatMap((secret) => [secret, JSON.stringify(secret).slice(1, -1), encodeURIComponent(secret)])
    .toSorted((a, b) => b.length - a.length);
  const known = [...new Set(forms)];
  return (text) => {
    let hidden = text;
    for (const form of known) {
      if (hidden.includes(form)) hidden = hidden.replaceAll(form, redacted);
    }
    return hideSecretsInText(hidden);
  };
}

/** Replaces passwords of URLs and keys of the Authorization header inside a line of text. */
export function hideSecretsInText(text: string): string {
  return (
    text
      .replaceAll(/([a-z][a-z0-9+.-]*:\/\/[^:@/\s"]*):[^\s"/]*@/gi, `$1:${redacted}@`)
      .replaceAll(/\b((?:password|api_key|secret|token)=)[^\s&"\\]+/gi, `$1${redacted}`)
      .replaceAll(/\b(Bearer\s+)[A-Za-z0-9._~+/=-]+/gi, `$1${redacted}`)
      // not the word after "Basic" in a sentence: that has small letters only
      .replaceAll(/\b(Basic\s+)(?=[A-Za-z+/]*[A-Z0-9=])[A-Za-z0-9+/=]{8,}/g, `$1${redacted}`)
  );
}

// pino-pretty is a development dependency: the image does not have it.
function prettyDestination(): DestinationStream | undefined {
  if (!process.stdout.isTTY) return undefined;
  try {
    const { build } = createRequire(import.meta.url)('pino-pretty') as typeof import('pino-pretty');
    return build({ sync: true, ignore: 'pid,hostname,service,instance,version' });
  } catch {
    return undefined;
  }
}
