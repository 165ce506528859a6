import { sql } from 'kysely';
import type { Database } from './client.ts';

/**
 * A low-water mark for a subscription of which a claim has just found nothing: `marginMs` ago by the database's clock.
 * None where the subscription does not hand out events or was changed within the margin: the claim may then have found
 * nothing because it was paused, whatever waits.
 */
export async function idleMark(
  db: Database,
  subscriptionId: number,
  marginMs: number,
): Promise<string | undefined> {
  const { rows } = await sql<{ mark: string }>`
    select clock_timestamp() - ${marginMs}::bigint * interval '1 millisecond' as mark
      from broker.subscription s
     where s.id = ${subscriptionId} and s.state = 'active'
       and s.updated_at < clock_timestamp() - ${marginMs}::bigint * interval '1 millisecond'`.execute(
    db,
  );
  return rows[0]?.mark;
}
