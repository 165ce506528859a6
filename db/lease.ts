/** What names a lease of one event, together with the topic and the subscription: the fencing of every settle. */
export interface Lease {
  readonly topic_id: number;
  readonly subscription_id: number;
  readonly retention_class: number;
  readonly publish_id: string;
  readonly entry_id: string;
  readonly generation: number;
  readonly ordinal: number;
}

/** The opaque text of a lease, as consumers hold it. */
export function encodeLeaseId(lease: Lease): string {
  return [
    lease.topic_id.toString(36),
    lease.subscription_id.toString(36),
    lease.retention_class.toString(36),
    BigInt(lease.publish_id).toString(36),
    BigInt(lease.entry_id).toString(36),
    lease.generation.toString(36),
    lease.ordinal.toString(36),
  ].join('-');
}

const pattern =
  /^[0-9a-z]{1,6}-[0-9a-z]{1,6}-[0-9a-z]{1,4}-[0-9a-z]{1,13}-[0-9a-z]{1,13}-[0-9a-z]{1,6}-[0-9a-z]{1,2}$/;

/** Reads a lease id; undefined for what never was one. */
export function decodeLeaseId(text: string): Lease | undefined {
  if (!pattern.test(text)) return undefined;
  const parts = text.split('-') as [string, string, string, string, string, string, string];
  const lease = {
    topic_id: Number.parseInt(parts[0], 36),
    subscription_id: Number.parseInt(parts[1], 36),
    retention_class: Number.parseInt(parts[2], 36),
    publish_id: bigintOf(parts[3]),
    entry_id: bigintOf(parts[4]),
    generation: Number.parseInt(parts[5], 36),
    ordinal: Number.parseInt(parts[6], 36),
  };
  const fits =
    [lease.topic_id, lease.subscription_id, lease.generation].every((part) => part <= 0x7fffffff) &&
    lease.retention_class <= 0x7fff &&
    lease.ordinal < 1024 &&
    // an event id is the publish id with ten bits more
    lease.publish_id < 1n << 53n &&
    lease.entry_id < 1n << 63n;
  return fits
    ? { ...lease, publish_id: lease.publish_id.toString(), entry_id: lease.entry_id.toString() }
    : undefined;
}

function bigintOf(base36: string): bigint {
  let value = 0n;
  for (const digit of base36) value = value * 36n + BigInt(Number.parseInt(digit, 36));
  return value;
}

const firstPublishMs = Date.UTC(2025, 0, 1);

/** When something was published, by the database's clock, in milliseconds since 1970: its id says so (functions/ids.sql). */
export function publishedAtMs(publishId: string): number {
  return firstPublishMs + Math.floor(Number(publishId) / 4096);
}
