import type { ClaimedEvent } from '#db/claim.ts';
import { encodeLeaseId } from '#db/lease.ts';

/** The attributes and data of an event as they are stored. */
export type EventRow = Pick<
  ClaimedEvent,
  | 'event_id'
  | 'ce_id'
  | 'source'
  | 'type'
  | 'subject'
  | 'time'
  | 'datacontenttype'
  | 'dataschema'
  | 'ordering_key'
  | 'extensions'
  | 'traceparent'
  | 'tracestate'
  | 'data'
>;

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

/** One event as receive hands it out. */
export function messageJson(
  event: ClaimedEvent,
  topic: { readonly id: number; readonly name: string },
): string {
  const leaseId = encodeLeaseId({ ...leaseOf(event), topic_id: topic.id });
  return (
    `{"lease_id":"${leaseId}","lease_expires_at":"${event.lease_expires_at}","delivery_attempt":${event.attempt}` +
    `,"event_id":"${event.event_id}","published_at":"${event.published_at}","event":${eventJson(event, topic.name)}}`
  );
}

function leaseOf(event: ClaimedEvent) {
  const { subscription_id, retention_class, publish_id, entry_id, generation, ordinal } = event;
  return { subscription_id, retention_class, publish_id, entry_id, generation, ordinal };
}

function member(name: string, value: string | null): string {
  return value === null ? '' : `,"${name}":${JSON.stringify(value)}`;
}
