import type { ClaimedEvent } from '#db/claim.ts';
import { encodeLeaseId } from '#db/lease.ts';
import { eventJson } from '#runtime/cloudevents.ts';

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
