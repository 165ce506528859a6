import { camelCase } from './config.ts';
import type { Environment } from './config-parse.ts';
import { schemaOf, variableNames } from './config-variables.ts';

/**
 * The secrets in a configuration and in the environment, as texts that must not be shown: of a URL its password, of a list its
 * items, of headers their values. Those of other processes too: they usually share one `.env`.
 */
export function secretsOf(env: Environment, config: object = {}): string[] {
  const values = new Map<string, unknown>(Object.entries(config));
  const found = variableNames
    .filter((name) => schemaOf(name).secret === true)
    .flatMap((name) =>
      [values.get(camelCase(name)), env[name]]
        .filter((value) => typeof value === 'string')
        .flatMap((value) => textsOf(value, schemaOf(name).check)),
    );
  return [...new Set(found)];
}

function textsOf(value: string, check: string | undefined): string[] {
  switch (check) {
    case 'postgres-url':
    case 'http-url': {
      // one that is none is refused
      const password = URL.parse(value)?.password ?? '';
      return password === '' ? [] : [password, decoded(password)];
    }
    case 'encryption-keys':
      return value.split(',').map((key) => key.trim());
    case 'key-values':
      return value.split(',').flatMap((pair) => {
        const text = decoded(pair.slice(pair.indexOf('=') + 1).trim());
        return [text, ...text.split(' ')];
      });
    default:
      return [value];
  }
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
