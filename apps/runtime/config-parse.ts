import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import Value from 'typebox/value';
import { schemaOf, type VariableName, type VariableSchema, variables } from './config-variables.ts';
import { splitKeys } from './sealer.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

/** What a text of the environment turned out to be: a value, or a fault in words. */
export type Parsed = { readonly value: unknown } | { readonly fault: string };

/**
 * The text of a variable: its own, or for a secret the content of the file that `NAME_FILE` names,
 * less its last line break. Nothing is set: `undefined`.
 */
export function readText(
  env: Environment,
  name: VariableName,
): { readonly text: string | undefined } | { readonly fault: string } {
  const text = env[name];
  if (schemaOf(name).secret !== true) return { text };
  const path = env[`${name}_FILE`];
  if (path === undefined) return { text };
  if (text !== undefined) return { fault: `${name}: also set as ${name}_FILE; set one of the two` };
  try {
    return { text: readFileSync(path, 'utf8').replace(/\r?\n$/, '') };
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : String(error);
    return { fault: `${name}_FILE: cannot read ${JSON.stringify(path)} (${code})` };
  }
}

/** Turns the text of a variable into its typed value, or says what is wrong with it. */
export function parseText(name: VariableName, text: string): Parsed {
  const schema = schemaOf(name);
  if (text === '' && schema.type !== 'array') {
    return { fault: `${name}: is set but empty; leave it out ${orWhat(schema)}` };
  }
  const parsed = convert(name, schema, text);
  if ('fault' in parsed) {
    const got = schema.secret === true ? '' : `, got ${JSON.stringify(text)}`;
    return { fault: `${name}: ${parsed.fault}${got}` };
  }
  if (!Value.Check(variables[name], parsed.value)) {
    const got = schema.secret === true ? '' : `, got ${JSON.stringify(text)}`;
    return { fault: `${name}: ${expectation(schema)}${got}` };
  }
  return parsed;
}

function orWhat(schema: VariableSchema): string {
  return schema.default === undefined
    ? 'instead'
    : `to get the default ${JSON.stringify(schema.default)}`;
}

function convert(name: VariableName, schema: VariableSchema, text: string): Parsed {
  switch (schema.type) {
    case 'integer':
      return /^-?\d{1,15}$/.test(text)
        ? { value: Number(text) }
        : { fault: `${expectation(schema)}${unitHint(name, text)}` };
    case 'number':
      return /^-?\d{1,15}(\.\d{1,15})?$/.test(text)
        ? { value: Number(text) }
        : { fault: expectation(schema) };
    case 'boolean':
      if (text === 'true' || text === '1') return { value: true };
      if (text === 'false' || text === '0') return { value: false };
      return { fault: expectation(schema) };
    case 'array':
      return convertList(schema, text);
    default:
      return checkText(schema, text);
  }
}

function unitHint(name: VariableName, text: string): string {
  if (!/^\d+\s*[a-z]+$/i.test(text)) return '';
  if (name.endsWith('_MS')) return ', without a unit (it counts milliseconds)';
  return name.includes('_BYTES_') ? ', without a unit (it counts bytes)' : ', without a unit';
}

function convertList(schema: VariableSchema, text: string): Parsed {
  const items = text
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '');
  for (const item of items) {
    const checked = checkText(schema.items ?? {}, item);
    if ('fault' in checked) return checked;
  }
  return { value: Object.freeze(items) };
}

function expectation(schema: VariableSchema): string {
  const range = `from ${schema.minimum} to ${schema.maximum}`;
  if (schema.enum !== undefined) return `must be one of ${schema.enum.join(', ')}`;
  if (schema.type === 'integer') return `must be a whole number ${range} in plain digits`;
  if (schema.type === 'number') return `must be a number ${range} in plain digits`;
  if (schema.type === 'boolean') return 'must be true, false, 1 or 0';
  if (schema.minLength !== undefined && schema.minLength > 1) {
    return `must have at least ${schema.minLength} characters`;
  }
  return schema.pattern === undefined ? 'is not valid' : `must match ${schema.pattern}`;
}

function checkText(schema: VariableSchema, text: string): Parsed {
  const fault = schema.check === undefined ? undefined : textRules[schema.check](text);
  return fault === undefined ? { value: text } : { fault };
}

// Each rule returns a fault in words, without the text itself: it may be a secret.
const textRules = {
  host: (text) =>
    isIP(text) !== 0 || /^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$/.test(text)
      ? undefined
      : 'must be an address or a host name',
  'postgres-url': (text) => checkUrl(text, ['postgres:', 'postgresql:']),
  'http-url': (text) => checkUrl(text, ['http:', 'https:']),
  origin: checkOrigin,
  cidr: (text) =>
    checkCidr(text) ??
    (text.endsWith('/0')
      ? 'must not cover every address: each client could forge its own'
      : undefined),
  'target-cidr': checkCidr,
  'encryption-keys': checkEncryptionKeys,
  'key-values': (text) =>
    isKeyValues(text)
      ? undefined
      : 'must be name=value, percent-encoded, with commas between several',
  'header-text': (text) =>
    /^[\x21-\x7e]+$/.test(text) ? undefined : 'must be printable ASCII without spaces',
} satisfies Record<NonNullable<VariableSchema['check']>, (text: string) => string | undefined>;

function checkUrl(text: string, protocols: readonly string[]): string | undefined {
  const expected = `must be a URL that begins with ${protocols.map((p) => `${p}//`).join(' or ')}`;
  if (!URL.canParse(text)) {
    return `${expected} (special characters of a password are percent-encoded)`;
  }
  return protocols.includes(new URL(text).protocol) ? undefined : expected;
}

// more would only be there because none was ever taken away
const encryptionKeysMax = 8;

function checkEncryptionKeys(text: string): string | undefined {
  const keys = splitKeys(text);
  if (!keys.every((key) => /^[A-Za-z0-9+/]{43}=$/.test(key))) {
    return 'must be 32 random bytes in base64 (openssl rand -base64 32), or several of those with commas between';
  }
  if (keys.length > encryptionKeysMax) return `must be ${encryptionKeysMax} keys at most`;
  const distinct = new Set(keys.map((key) => Buffer.from(key, 'base64').toString('hex')));
  return distinct.size === keys.length ? undefined : 'has the same key twice';
}

/** The list of a W3C baggage header without properties, which OpenTelemetry's variables are too. */
function isKeyValues(text: string): boolean {
  return text
    .split(',')
    .every((pair) =>
      /^\s*[A-Za-z0-9!#$&'*+.^_`|~-]+\s*=[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e ]*$/.test(pair),
    );
}

function checkOrigin(text: string): string | undefined {
  if (text === '*') return undefined;
  const fault = checkUrl(text, ['http:', 'https:']);
  if (fault !== undefined) return fault;
  return new URL(text).origin === text
    ? undefined
    : 'each must be an origin: scheme://host[:port] in lower case, without a path, slash or default port';
}

function checkCidr(text: string): string | undefined {
  if (/^\d+$/.test(text)) {
    return 'must be addresses or CIDR ranges; a number of hops can be forged by the client';
  }
  const [address = '', prefix, ...rest] = text.split('/');
  const bits = isIP(address) === 6 ? 128 : 32;
  const isValid =
    isIP(address) !== 0 &&
    rest.length === 0 &&
    (prefix === undefined || (/^\d{1,3}$/.test(prefix) && Number(prefix) <= bits));
  return isValid ? undefined : 'must be addresses or CIDR ranges such as 10.0.0.0/8';
}
