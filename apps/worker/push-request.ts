import type { ClaimedEvent } from '#db/claim.ts';
import { binaryHeaders, dataHeaders, eventJson, traceHeaders } from '#runtime/cloudevents.ts';
import { isReservedHeader } from '#runtime/reserved-headers.ts';
import { version } from '#runtime/version.ts';
import type { EndpointRequest } from './endpoint-client.ts';
import { sign } from './signature.ts';

/** Where and how the events of a push subscription are sent. */
export interface PushTarget {
  /** Name of the topic. */
  readonly topic: string;
  readonly endpoint: string;
  readonly mode: 'cloudevents_binary' | 'cloudevents_structured' | 'raw';
  /** Of the subscription's own; the broker's win. */
  readonly headers: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  /** Of the signatures: the bytes, not their base64. */
  readonly secret: Buffer;
}

const userAgent = `event-broker/${version}`;

/**
 * The signed request of one attempt. `data` goes out byte for byte as it was published.
 * @param now seconds since 1970: the time that the signature tells
 */
export function buildRequest(
  event: ClaimedEvent,
  target: PushTarget,
  now: number,
): EndpointRequest {
  const { headers: ownHeaders, text } = render(event, target);
  // Encoded once: what is signed is what is sent.
  const body = Buffer.from(text);
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(target.headers)) {
    if (!isReservedHeader(name)) headers[name.toLowerCase()] = value;
  }
  Object.assign(headers, ownHeaders);
  headers['user-agent'] = userAgent;
  headers['broker-delivery-attempt'] = String(event.attempt);
  headers['webhook-id'] = event.event_id;
  headers['webhook-timestamp'] = String(now);
  headers['webhook-signature'] = sign(target.secret, { id: event.event_id, timestamp: now, body });
  return { url: target.endpoint, headers, body, timeoutMs: target.timeoutMs };
}

interface Rendering {
  readonly headers: Readonly<Record<string, string>>;
  readonly text: string;
}

function render(event: ClaimedEvent, { mode, topic }: PushTarget): Rendering {
  switch (mode) {
    case 'cloudevents_binary':
      return { headers: binaryHeaders(event, topic), text: event.data ?? '' };
    case 'cloudevents_structured':
      return {
        headers: {
          'content-type': 'application/cloudevents+json; charset=utf-8',
          ...traceHeaders(event),
        },
        text: eventJson(event, topic),
      };
    case 'raw':
      return {
        headers: { ...dataHeaders(event), ...traceHeaders(event) },
        text: event.data ?? '',
      };
  }
}
