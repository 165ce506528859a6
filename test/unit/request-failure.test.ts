import { expect, test } from 'vitest';
import { EgressDenied } from '#runtime/egress.ts';
import { failureReason } from '../../apps/worker/request-failure.ts';

const withCode = (code: string): Error => Object.assign(new Error(code), { code });

test.each([
  ['ECONNREFUSED', 'connect'],
  ['EHOSTUNREACH', 'connect'],
  ['UND_ERR_CONNECT_TIMEOUT', 'timeout'],
  ['ETIMEDOUT', 'timeout'],
  ['ENOTFOUND', 'dns'],
  ['EAI_AGAIN', 'dns'],
  ['ECONNRESET', 'reset'],
  ['UND_ERR_SOCKET', 'reset'],
  ['CERT_HAS_EXPIRED', 'tls'],
  ['ERR_TLS_CERT_ALTNAME_INVALID', 'tls'],
  ['ERR_SSL_WRONG_VERSION_NUMBER', 'tls'],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', 'tls'],
  ['UND_ERR_HEADERS_OVERFLOW', 'protocol'],
  ['toString', 'other'],
  ['SOMETHING_NEW', 'other'],
])('%s is counted as %s', (code, reason) => {
  expect(failureReason(withCode(code))).toBe(reason);
});

test('an address that is not allowed, an answer that is no HTTP, and what is no error', () => {
  expect(failureReason(new EgressDenied('10.0.0.1'))).toBe('not_allowed');
  const parser = Object.assign(new Error('bad'), { name: 'HTTPParserError' });
  expect([failureReason(parser), failureReason('text')]).toEqual(['protocol', 'other']);
});
