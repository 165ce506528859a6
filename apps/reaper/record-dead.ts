import type { Reaped } from '#db/reap.ts';
import { namesOf } from '#db/stats.ts';
import type { Term } from './term.ts';

/** Counts the events that died because their leases ended without an answer and no attempt was left. */
export async function recordDead(
  term: Term,
  { dead_subscription_ids: ids, dead_counts: counts }: Omit<Reaped, 'mark'>,
): Promise<void> {
  const names = await namesOf(term.db, 'subscription', ids);
  for (const [index, id] of ids.entries()) {
    term.metrics.recordDeadLettered({
      subscription: names.get(id) ?? '',
      reason: 'max_attempts',
      events: counts[index] ?? 0,
    });
  }
}
