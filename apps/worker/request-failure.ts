import type { PushFailure } from '#runtime/metrics.ts';

/** By the code of an error: what to tell those who look after the endpoint. */
const WORDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'connection reset',
  ECONNABORTED: 'connection reset',
  EPIPE: 'connection closed before the request was sent',
  EHOSTUNREACH: 'host unreachable',
  ENETUNREACH: 'network unreachable',
  EADDRNOTAVAIL: 'no local port or address left to connect from',
  EMFILE: 'too many open files',
  ETIMEDOUT: 'connect timeout',
  ENOTFOUND: 'host name not found',
  EAI_AGAIN: 'host name look-up failed',
  UND_ERR_CONNECT_TIMEOUT: 'connect timeout',
  UND_ERR_SOCKET: 'connection closed before an answer',
  UND_ERR_HEADERS_OVERFLOW: 'headers of the answer too large',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'answer shorter or longer than it says',
  CERT_HAS_EXPIRED: 'certificate has expired',
  CERT_NOT_YET_VALID: 'certificate is not yet valid',
  CERT_REVOKED: 'certificate is revoked',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'certificate is self-signed',
  SELF_SIGNED_CERT_IN_CHAIN: 'certificate of an authority that is not trusted',
  UNABLE_TO_GET_ISSUER_CERT: 'certificate of an authority that is not trusted',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'certificate of an authority that is not trusted',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'certificate of an authority that is not trusted',
  ERR_TLS_CERT_ALTNAME_INVALID: 'certificate is for another host name',
  ERR_SSL_WRONG_VERSION_NUMBER: 'no TLS at this port',
  ERR_SSL_PACKET_LENGTH_TOO_LONG: 'no TLS at this port',
  EGRESS_DENIED: '',
  UND_ERR_INVALID_ARG: '',
};

/**
 * An error of a request in a few words. Only of errors whose texts are known to say nothing about what was sent the text
 * is taken; of others the code.
 */
export function failureText(error: unknown): string {
  if (!(error instanceof Error)) return 'request failed';
  const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
  const words = Object.hasOwn(WORDS, code) ? WORDS[code] : undefined;
  if (words !== undefined) return words === '' ? error.message : words;
  // undici gives it no code
  if (error.name === 'HTTPParserError') return 'answer is not HTTP/1.1';
  if (code.startsWith('ERR_SSL_')) return `TLS failed (${code})`;
  return code === '' ? 'request failed' : `request failed (${code})`;
}

/** By the code of an error; what begins with CERT_ or ERR_SSL_ beside these is of TLS. */
const REASONS: Readonly<Record<string, PushFailure>> = {
  ECONNREFUSED: 'connect',
  EHOSTUNREACH: 'connect',
  ENETUNREACH: 'connect',
  EADDRNOTAVAIL: 'connect',
  EMFILE: 'connect',
  ETIMEDOUT: 'timeout',
  UND_ERR_CONNECT_TIMEOUT: 'timeout',
  ENOTFOUND: 'dns',
  EAI_AGAIN: 'dns',
  ECONNRESET: 'reset',
  ECONNABORTED: 'reset',
  EPIPE: 'reset',
  UND_ERR_SOCKET: 'reset',
  UND_ERR_HEADERS_OVERFLOW: 'protocol',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'protocol',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'tls',
  SELF_SIGNED_CERT_IN_CHAIN: 'tls',
  UNABLE_TO_GET_ISSUER_CERT: 'tls',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'tls',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'tls',
  ERR_TLS_CERT_ALTNAME_INVALID: 'tls',
  EGRESS_DENIED: 'not_allowed',
};

/** An error of a request in one word of few, to be counted by. */
export function failureReason(error: unknown): PushFailure {
  if (!(error instanceof Error)) return 'other';
  const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
  const reason = Object.hasOwn(REASONS, code) ? REASONS[code] : undefined;
  if (reason !== undefined) return reason;
  if (error.name === 'HTTPParserError') return 'protocol';
  return /^(CERT|ERR_SSL|ERR_TLS)_/.test(code) ? 'tls' : 'other';
}
