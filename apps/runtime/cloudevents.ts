import { activeSpanContext } from './tracing.ts';

/** The attributes and data of an event as they are stored. */
export interface EventRow {
  readonly event_id: string;
  readonly ce_id: string | null;
  readonly source: string | null;
  readonly type: string;
  readonly subject: string | null;
  readonly time: string | null;
  readonly datacontenttype: string | null;
  readonly dataschema: string | null;
  readonly ordering_key: string | null;
  /** JSON text of an object with strings, numbers and booleans. */
  readonly extensions: string | null;
  readonly traceparent: string | null;
  readonly tracestate: string | null;
  /** The JSON text that was published; null where there was none. */
  readonly data: string | null;
}

/** The source of events whose producer gave none. */
export function defaultSource(topicName: string): string {
  return `/topics/${topicName}`;
}

/**
 * An event in CloudEvents' JSON format, as text: `data` is the very text that was published, and is not looked at.
 * https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
 */
export function eventJson(event: EventRow, topicName: string): string {
  const id = event.ce_id === null ? `"${event.event_id}"` : JSON.stringify(event.ce_id);
  const source = JSON.stringify(event.source ?? defaultSource(topicName));
  return (
    `{"specversion":"1.0","id":${id},"source":${source},"type":${JSON.stringify(event.type)}` +
    member('subject', event.subject) +
    member('time', event.time) +
    member('datacontenttype', event.datacontenttype) +
    member('dataschema', event.dataschema) +
    member('partitionkey', event.ordering_key) +
    // the members of a JSON object, without its braces
    (event.extensions === null || event.extensions.length <= 2
      ? ''
      : `,${event.extensions.slice(1, -1)}`) +
    member('traceparent', event.traceparent) +
    member('tracestate', event.tracestate) +
    `,"brokereventid":"${event.event_id}"` +
    (event.data === null ? '}' : `,"data":${event.data}}`)
  );
}

function member(name: string, value: string | null): string {
  return value === null ? '' : `,"${name}":${JSON.stringify(value)}`;
}

/**
 * The headers of an event whose data alone is the body: CloudEvents' HTTP binding 1.0.2, section 3.1, with the trace
 * context of `traceHeaders`.
 */
export function binaryHeaders(event: EventRow, topicName: string): Record<string, string> {
  // Extensions first: where one has the name of an attribute, the attribute wins.
  const headers = event.extensions === null ? {} : extensionHeaders(event.extensions);
  headers['ce-specversion'] = '1.0';
  headers['ce-id'] = percentEncoded(event.ce_id ?? event.event_id);
  headers['ce-source'] = percentEncoded(event.source ?? defaultSource(topicName));
  headers['ce-type'] = percentEncoded(event.type);
  if (event.subject !== null) headers['ce-subject'] = percentEncoded(event.subject);
  if (event.time !== null) headers['ce-time'] = percentEncoded(event.time);
  if (event.dataschema !== null) headers['ce-dataschema'] = percentEncoded(event.dataschema);
  if (event.ordering_key !== null) headers['ce-partitionkey'] = percentEncoded(event.ordering_key);
  headers['ce-brokereventid'] = percentEncoded(event.event_id);
  if (event.traceparent !== null) headers['ce-traceparent'] = percentEncoded(event.traceparent);
  if (event.tracestate !== null) headers['ce-tracestate'] = percentEncoded(event.tracestate);
  return Object.assign(headers, dataHeaders(event), traceHeaders(event));
}

/** `content-type` of data that is a body by itself; JSON where the producer named no type. */
export function dataHeaders(
  event: Pick<EventRow, 'datacontenttype' | 'data'>,
): Record<string, string> {
  const type = event.datacontenttype ?? (event.data === null ? null : 'application/json');
  return type === null ? {} : { 'content-type': printable(type) };
}

/**
 * W3C Trace Context of the request. CloudEvents' tracing extension (attributes `traceparent` and `tracestate`) tells in
 * which trace the event was made and stays as it is at every hop; these headers belong to one hop. Inside the span of a delivery its HTTP
 * client writes them; where there is none, they pass on the same.
 */
export function traceHeaders(
  event: Pick<EventRow, 'traceparent' | 'tracestate'>,
): Record<string, string> {
  const headers: Record<string, string> = {};
  if (event.traceparent === null || activeSpanContext() !== undefined) return headers;
  headers['traceparent'] = printable(event.traceparent);
  if (event.tracestate !== null) headers['tracestate'] = printable(event.tracestate);
  return headers;
}

/** CloudEvents 1.0.2 section 3.1: the names that attributes have. */
const ATTRIBUTE_NAME = /^[a-z0-9]+$/;

function extensionHeaders(extensions: string): Record<string, string> {
  const headers: Record<string, string> = {};
  const values = JSON.parse(extensions) as Readonly<Record<string, unknown>>;
  for (const [name, value] of Object.entries(values)) {
    const isText =
      typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean';
    if (isText && ATTRIBUTE_NAME.test(name)) headers[`ce-${name}`] = percentEncoded(String(value));
  }
  return headers;
}

/** Printable ASCII but space, double quote and percent. */
const ENCODED = /[^!#$&-~]+/g;
const NOT_PRINTABLE = /[^ -~]+/g;

/** CloudEvents' HTTP binding 1.0.2, section 3.1.3.2. */
function percentEncoded(value: string): string {
  return value.replace(ENCODED, encodeUtf8);
}

/** A value with a syntax of its own, in which spaces, quotes and percent signs mean something. */
function printable(value: string): string {
  return value.replace(NOT_PRINTABLE, encodeUtf8);
}

/** None of the characters that are left to it is one that encodeURIComponent keeps. */
function encodeUtf8(characters: string): string {
  return encodeURIComponent(characters.toWellFormed());
}
