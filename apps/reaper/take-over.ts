import { namesOf } from '#db/stats.ts';
import { findGoneWorkers, takeOver, topicsLeasedBy } from '#db/take-over.ts';
import { Failures } from './failures.ts';
import type { DutyRun, Term } from './term.ts';

const leasesPerCall = 200;

/** Takes back the leases of workers that are gone: at once where the session lock is free, after 10 s without a heartbeat. */
export function takeOverLeases(term: Term): DutyRun {
  return async () => {
    const workers = await findGoneWorkers(term.db, term.term, term.lookBackMs);
    if (workers.length === 0) return;
    const topicIds = await topicsLeasedBy(term.db, workers);
    const names = await namesOf(term.db, 'topic', topicIds);
    const failures = new Failures();
    for (const topicId of topicIds) {
      for (const worker of workers) {
        const of = { topicId, worker, topic: names.get(topicId) ?? '' };
        await takeAll(term, of).catch((error: unknown) => failures.add(error));
      }
    }
    failures.throwIfAny();
  };
}

async function takeAll(
  term: Term,
  of: { readonly topicId: number; readonly worker: string; readonly topic: string },
): Promise<void> {
  const { topicId, worker, topic } = of;
  for (;;) {
    term.signal.throwIfAborted();
    const taken = await takeOver(term.db, topicId, term.term, { worker, limit: leasesPerCall });
    term.wakeups.wake(topicId, taken.woken);
    term.metrics.recordLeasesTakenOver({ topic, leases: taken.expired_events });
    if (!taken.more) return;
  }
}
