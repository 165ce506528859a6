import { sql } from 'kysely';
import type { Database } from './client.ts';

/** How much a claimer can take of one subscription, and where it starts to look. */
export interface ClaimRoom {
  readonly subscription_id: number;
  readonly events: number;
  readonly bytes: number;
  /** Low-water mark, RFC 3339; absent: from the head. */
  readonly mark?: string | undefined;
}

export interface ClaimOptions {
  readonly leaseMs: number;
  /** The process that the leases belong to; absent for pull consumers, whose leases belong to none. */
  readonly leasedBy?: string;
}

/** One event, leased. Together with the topic's id it has all that a lease id says. */
export interface ClaimedEvent {
  readonly subscription_id: number;
  readonly publish_id: string;
  readonly entry_id: string;
  readonly generation: number;
  readonly attempt: number;
  readonly isolated: boolean;
  readonly retention_class: number;
  readonly due_at: string;
  readonly lease_expires_at: string;
  /** Something due was left of this subscription. */
  readonly more: boolean;
  readonly ordinal: number;
  /** The broker's id; of a redriven event the first one. */
  readonly event_id: string;
  readonly published_at: string;
  readonly ce_id: string | null;
  readonly source: string | null;
  readonly type: string;
  readonly subject: string | null;
  readonly time: string | null;
  readonly datacontenttype: string | null;
  readonly dataschema: string | null;
  readonly ordering_key: string | null;
  readonly extensions: string | null;
  readonly traceparent: string | null;
  readonly tracestate: string | null;
  /** The text that was published; null where there was none. */
  readonly data: string | null;
}

/** Leases what is due for some subscriptions of one topic, up to a room for each. Never waits for another claimer. */
export async function claim(
  db: Database,
  topicId: number,
  rooms: readonly ClaimRoom[],
  options: ClaimOptions,
): Promise<ClaimedEvent[]> {
  const { rows } = await sql<ClaimedEvent>`select * from broker.claim(${topicId},
    ${rooms.map((room) => room.subscription_id)}::int[], ${rooms.map((room) => room.events)}::int[],
    ${rooms.map((room) => room.bytes)}::int[], ${rooms.map((room) => room.mark ?? null)}::timestamptz[],
    ${options.leaseMs}::bigint, ${options.leasedBy ?? null})`.execute(db);
  return rows;
}
