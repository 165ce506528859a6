const RESERVED_NAMES: ReadonlySet<string> = new Set([
  // The connection and the frame of the body (RFC 9110 §7.6.1, RFC 9112 §6) are the HTTP client's.
  'host',
  'content-length',
  'connection',
  'transfer-encoding',
  'te',
  'trailer',
  'upgrade',
  'keep-alive',
  'expect',
  'http2-settings',
  // These say what the broker sends and who it is.
  'content-type',
  'content-encoding',
  'user-agent',
  'traceparent',
  'tracestate',
]);

const RESERVED_PREFIXES: readonly string[] = ['proxy-', 'webhook-', 'ce-', 'broker-'];

/** Whether a header of a push request is the broker's or the connection's own, so that a subscription cannot set it. */
export function isReservedHeader(name: string): boolean {
  const lower = name.toLowerCase();
  return RESERVED_NAMES.has(lower) || RESERVED_PREFIXES.some((prefix) => lower.startsWith(prefix));
}
