import {
  detachPartition,
  dropPartition,
  expiredPartitions,
  expireEntries,
  type ExpiredPartition,
} from '#db/partitions.ts';
import { namesOf } from '#db/stats.ts';
import { Failures } from './failures.ts';
import type { DutyRun, Term } from './term.ts';

const entriesPerCall = 500;

/**
 * Retention wins: ends what still refers to a partition whose time is over, and drops it. One that cannot go now, because a
 * reader is in the way, is left for the next run and holds up no other.
 */
export function retirePartitions(term: Term): DutyRun {
  return async () => {
    const failures = new Failures();
    for (const partition of await expiredPartitions(term.db)) {
      term.signal.throwIfAborted();
      await retire(term, partition).catch((error: unknown) => failures.add(error));
    }
    failures.throwIfAny();
  };
}

async function retire(term: Term, partition: ExpiredPartition): Promise<void> {
  await expire(term, partition);
  await detachPartition(term.db, partition);
  // what was being settled while it was looked at
  await expire(term, partition);
  await dropPartition(term.db, term.term, partition);
  term.note?.('dropped_partitions', 1);
}

async function expire(term: Term, partition: ExpiredPartition): Promise<void> {
  for (;;) {
    term.signal.throwIfAborted();
    const expired = await expireEntries(term.db, term.term, partition, entriesPerCall);
    if (expired.length === 0) return;
    const topics = await namesOf(
      term.db,
      'topic',
      expired.map((each) => each.topic_id),
    );
    const subscriptions = await namesOf(
      term.db,
      'subscription',
      expired.map((each) => each.subscription_id),
    );
    for (const each of expired) {
      const topic = topics.get(each.topic_id) ?? '';
      const subscription = subscriptions.get(each.subscription_id) ?? '';
      const { dropped, dead } = each;
      term.metrics.recordEventsExpired({ topic, subscription, events: dropped + dead });
      term.metrics.recordDeadLettered({ subscription, reason: 'expired', events: dead });
    }
  }
}
