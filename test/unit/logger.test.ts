import { describe, expect, test } from 'vitest';
import { secretsOf } from '#runtime/config-secrets.ts';
import { createLogger, hideSecretsInText, type Logger, secretHider } from '#runtime/logger.ts';
import { version } from '#runtime/version.ts';

function loggerWithLines(level = 'info'): { logger: Logger; lines: string[] } {
  const lines: string[] = [];
  const destination = { write: (line: string) => void lines.push(line) };
  return { logger: createLogger({ service: 'api', instance: 'i-1', level, destination }), lines };
}

describe('log lines', () => {
  test('are JSON with service, instance, version, time and the level as a word', () => {
    const { logger, lines } = loggerWithLines();
    logger.info({ topic: 'orders' }, 'hello');
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/\n$/);
    expect(JSON.parse(lines[0]!)).toEqual({
      level: 'info',
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
      service: 'api',
      instance: 'i-1',
      version,
      topic: 'orders',
      msg: 'hello',
    });
  });

  test('less severe than the level are not written', () => {
    const { logger, lines } = loggerWithLines('warn');
    logger.info('quiet');
    logger.warn('loud');
    expect(lines).toHaveLength(1);
  });
});

describe('secrets', () => {
  test.each([
    [{ authorization: 'hidden-1' }],
    [{ req: { headers: { authorization: 'hidden-1', Authorization: 'hidden-1' } } }],
    [{ request: { api_key: 'hidden-1' }, config: { adminApiKey: 'hidden-1' } }],
    [{ data: { total: 'hidden-1' } }],
    [{ event: { data: 'hidden-1', data_binary: 'hidden-1' } }],
    [{ call: { events: [{ data: 'hidden-1' }] } }],
    [{ a: { b: { c: { d: { e: { Data: ['hidden-1'] } } } } } }],
    [{ payload: 'hidden-1', body: 'hidden-1' }],
    [{ headers: { 'x-hook-token': 'hidden-1' } }],
    [{ request: { idempotency_key: 'hidden-1', 'Idempotency-Key': 'hidden-1' } }],
    [{ config: { databaseUrl: 'hidden-1', secretEncryptionKey: 'hidden-1', sealed: 'hidden-1' } }],
  ])('%o is not written', (line) => {
    const { logger, lines } = loggerWithLines();
    logger.info(line, 'x');
    logger.child(line).info('x');
    expect(lines).toHaveLength(2);
    expect(lines.join()).not.toContain('hidden-1');
    for (const each of lines) expect(() => JSON.parse(each) as unknown).not.toThrow();
  });

  test('an error of the database does not bring the row that it quotes', () => {
    const { logger, lines } = loggerWithLines();
    const error = new Error('violates check constraint', {
      cause: new Error('connect postgres://broker:hidden-1@db/broker'),
    });
    Object.assign(error, { detail: 'Failing row contains (hidden-1)', data: 'hidden-1' });
    logger.error({ err: error }, 'publish failed');
    expect(lines[0]).toContain('violates check constraint');
    expect(lines[0]).toContain('postgres://broker:[redacted]@db/broker');
    expect(lines[0]).not.toContain('hidden-1');
  });

  test.each([
    ['postgres://u:p%40:x@h:5432/db', 'postgres://u:[redacted]@h:5432/db'],
    ['"postgresql://u:a@b@h/db"', '"postgresql://u:[redacted]@h/db"'],
    ['postgres://u@h/db?password=abc&x=1', 'postgres://u@h/db?password=[redacted]&x=1'],
    ['host=h password=abc user=u', 'host=h password=[redacted] user=u'],
    ['Authorization: Bearer eb_abc.def-1', 'Authorization: Bearer [redacted]'],
    ['amqps://u:abc@h/x', 'amqps://u:[redacted]@h/x'],
    ['http://h/hook?token=abc&x=1', 'http://h/hook?token=[redacted]&x=1'],
    ['http://h/hook?api_key=abc', 'http://h/hook?api_key=[redacted]'],
    ['Authorization: Basic dXNlcjpwYXNzd29yZA==', 'Authorization: Basic [redacted]'],
    ['Basic authentication is for browsers', 'Basic authentication is for browsers'],
    ['postgres://h/db and an @ sign', 'postgres://h/db and an @ sign'],
    ['http://h:80/@x', 'http://h:80/@x'],
  ])('in the text %s', (text, expected) => {
    expect(hideSecretsInText(text)).toBe(expected);
  });
});

describe('the secrets of the configuration', () => {
  const hide = secretHider(['quote"d-secret', 'with/slash+plus', 'short']);

  test.each([
    ['in a sentence: with/slash+plus.', 'in a sentence: [redacted].'],
    ['{"a":"quote\\"d-secret"}', '{"a":"[redacted]"}'],
    ['http://h/?k=with%2Fslash%2Bplus', 'http://h/?k=[redacted]'],
    ['quote"d-secret twice quote"d-secret', '[redacted] twice [redacted]'],
    // it may be a part of any word
    ['short', 'short'],
  ])('%s', (text, expected) => {
    expect(hide(text)).toBe(expected);
  });

  test('are found in lines, wherever they come from', () => {
    const lines: string[] = [];
    const destination = { write: (line: string) => void lines.push(line) };
    const settings = { service: 'api', instance: 'i', level: 'info', destination };
    const logger = createLogger({ ...settings, secrets: ['hidden-12'] });
    logger.error({ err: new Error('cannot use hidden-12'), note: 'hidden-12' }, 'with hidden-12');
    expect(lines.join()).not.toContain('hidden-12');
    expect(lines).toHaveLength(1);
  });

  test('are those of the environment and of files: passwords of URLs, items of lists', () => {
    const secrets = secretsOf(
      {
        DATABASE_URL: 'postgres://u:p%40ssword-1@h/db',
        ADMIN_API_KEY: 'admin-key-of-16-characters',
        SECRET_ENCRYPTION_KEY: 'key-one, key-two',
        DATABASE_DIRECT_URL: 'no URL',
        LOG_LEVEL: 'debug',
      },
      { apiKey: 'key-of-a-file', logLevel: 'debug' },
    );
    expect(secrets.toSorted()).toEqual(
      [
        'admin-key-of-16-characters',
        'key-of-a-file',
        'key-one',
        'key-two',
        'p%40ssword-1',
        'p@ssword-1',
      ].toSorted(),
    );
  });
});
