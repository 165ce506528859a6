import { hash } from 'node:crypto';
import type { NewEvent } from '#db/publish.ts';
import type { EventInput } from './publish-body.ts';

const keyBytes = 16;

/** RFC 8941 section 3.3.3: a string in quotes, with \" and \\ inside. */
const quoted = /^"(?:[\u0020-\u0021\u0023-\u005b\u005d-\u007e]|\\["\\])+"$/;
const visible = /^[\u0021-\u007e]+$/;
const keyLengthMax = 255;

/**
 * Reads the header Idempotency-Key: visible ASCII characters, or the same in quotes, which mean the same key. Undefined for
 * what is neither.
 */
export function readIdempotencyKey(header: string): string | undefined {
  if (header.startsWith('"')) {
    const key = quoted.test(header) ? header.slice(1, -1).replaceAll(/\\(["\\])/g, '$1') : '';
    return key.length >= 1 && key.length <= keyLengthMax ? key : undefined;
  }
  return visible.test(header) && header.length <= keyLengthMax ? header : undefined;
}

/** What remembers a request by its Idempotency-Key, and what must not differ when the key comes again. */
export function requestKey(key: string, body: Buffer): { key: Buffer; fingerprint: Buffer } {
  return { key: digest(`request:${key}`), fingerprint: digest(body) };
}

/**
 * What remembers an event by its (source, id). Trace context and delay are no part of the fingerprint: they may differ
 * in a retry.
 */
export function eventKey(
  event: EventInput,
  id: string,
  defaultSource: string,
): Required<Pick<NewEvent, 'key' | 'fingerprint'>> {
  const source = event.source ?? defaultSource;
  // an array as JSON says itself where it ends, so what follows cannot be taken for a part of it
  const attributes = [
    event.type,
    event.subject,
    event.time,
    event.datacontenttype,
    event.dataschema,
    event.ordering_key,
    event.extensions === undefined ? undefined : Object.entries(event.extensions).toSorted(byName),
    event.data === undefined,
  ];
  return {
    // the length of the source keeps apart what would read the same when put together
    key: digest(`event:${source.length}:${source}:${id}`),
    fingerprint: digest(JSON.stringify(attributes) + (event.data ?? '')),
  };
}

function byName([a]: [string, unknown], [b]: [string, unknown]): number {
  return a < b ? -1 : 1;
}

function digest(text: string | Buffer): Buffer {
  // a copy: a slice would keep all of Node's buffer alive
  return Buffer.copyBytesFrom(hash('sha256', text, 'buffer'), 0, keyBytes);
}
