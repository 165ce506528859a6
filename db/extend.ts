import { sql } from 'kysely';
import type { Database } from './client.ts';
import type { Lease } from './lease.ts';

/**
 * Prolongs leases of one subscription to `leaseMs` from now, or leaves them where they end later already. Answers with the
 * new deadlines in the order of the leases; null where the lease is lost.
 */
export async function extend(
  db: Database,
  topicId: number,
  subscriptionId: number,
  extension: { readonly leases: readonly Lease[]; readonly leaseMs: number },
): Promise<(string | null)[]> {
  const { leases, leaseMs } = extension;
  const { rows } = await sql<{ element: number; lease_expires_at: string | null }>`
    select element, lease_expires_at from broker.extend(${topicId}, ${subscriptionId},
      ${leases.map((lease) => lease.publish_id)}::bigint[], ${leases.map((lease) => lease.entry_id)}::bigint[],
      ${leases.map((lease) => lease.generation)}::int[], ${leases.map((lease) => lease.ordinal)}::smallint[],
      ${leaseMs}::bigint)`.execute(db);
  const deadlines = Array.from<string | null>({ length: leases.length }).fill(null);
  for (const row of rows) deadlines[row.element - 1] = row.lease_expires_at;
  return deadlines;
}
