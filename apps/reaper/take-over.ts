import { namesOf } from '#db/stats.ts';
import { findGoneWorkers, takeOver, topicsLeasedBy } from '#db/take-over.ts';
import { recordDead } from './record-dead.ts';
import { Failures } from './failures.ts';
import type { DutyRun, Term } from './term.ts';

const leasesPerCall = 200;
/** The look for their topics is one probe for each of them and topic: bounded, however many fell in a row. */
const workersPerLook = 20;
/** As long as their rows are kept. */
const farBackMs = 3_600_000;

/**
 * Takes back the leases of workers that are gone: at once where the session lock is free, after 10 s without a heartbeat.
 * Who marked them may have died before it took everything, and nobody led for a while: so a term looks far back, until a
 * round has seen no lease of any of them. From then on nothing of theirs can appear but claims that were under way.
 */
export function takeOverLeases(term: Term): DutyRun {
  let isClear = false;
  const newlyGone = countNewlyGone();
  return async () => {
    const lookBackMs = isClear ? term.lookBackMs : Math.max(farBackMs, term.lookBackMs);
    isClear = false;
    const workers = await findGoneWorkers(term.db, term.term, lookBackMs);
    term.metrics.recordWorkersGone(newlyGone(workers, lookBackMs > term.lookBackMs));
    let found = 0;
    const failures = new Failures();
    for (let at = 0; at < workers.length; at += workersPerLook) {
      found += await takeFrom(term, workers.slice(at, at + workersPerLook), failures);
    }
    failures.throwIfAny();
    isClear = found === 0;
  };
}

/**
 * How many of those that a look finds gone were not by the look before. Those of the first look were counted in the term before:
 * nobody is marked in the first 5 s of one. A name may live again, and be gone again, which only shows in a look that is not far.
 */
function countNewlyGone(): (workers: readonly string[], isFar: boolean) => number {
  let known: Set<string> | undefined;
  let seen = new Set<string>();
  return (workers, isFar) => {
    const before = isFar ? (known ?? new Set(workers)) : seen;
    const fresh = workers.filter((worker) => !before.has(worker));
    seen = isFar && known !== undefined ? seen.union(new Set(fresh)) : new Set(workers);
    known = new Set([...(known ?? []), ...workers]);
    return fresh.length;
  };
}

/** Takes what these workers have; returns in how many topics that was. */
async function takeFrom(
  term: Term,
  workers: readonly string[],
  failures: Failures,
): Promise<number> {
  const topicIds = await topicsLeasedBy(term.db, workers);
  if (topicIds.length === 0) return 0;
  const names = await namesOf(term.db, 'topic', topicIds);
  for (const topicId of topicIds) {
    for (const worker of workers) {
      const of = { topicId, worker, topic: names.get(topicId) ?? '' };
      await takeAll(term, of).catch((error: unknown) => failures.add(error));
    }
  }
  return topicIds.length;
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
    await recordDead(term, taken);
    term.note?.('taken_over_events', taken.expired_events);
    if (!taken.more) return;
  }
}
