import { clockBefore } from '#db/clock.ts';
import { overdueTopics, reap } from '#db/reap.ts';
import { namesOf } from '#db/stats.ts';
import { recordDead } from './record-dead.ts';
import { Failures } from './failures.ts';
import type { DutyRun, Term } from './term.ts';

const leasesPerCall = 200;
const overlapMs = 1000;
const lookBackEveryMs = 2000;
const fromHeadEveryMs = 60_000;

/**
 * Takes back the leases that ran out. It starts where the look before ended: what expired before that was taken back, except
 * what was locked then, or was committed late, for which it goes further back every 2 s, and to the head once a minute.
 */
export function reapLeases(term: Term): DutyRun {
  let mark = '-infinity';
  let lookBackAt = 0;
  let fromHeadAt = 0;
  return async () => {
    const now = performance.now();
    const isFromHead = now >= fromHeadAt;
    const isLookBack = now >= lookBackAt;
    const since = isFromHead ? '-infinity' : isLookBack ? before(mark, term.lookBackMs) : mark;
    const next = await clockBefore(term.db, overlapMs);
    await reapTopics(term, await overdueTopics(term.db, since), since);
    // Only now: after a failure the same look is made again.
    mark = next;
    if (isFromHead) fromHeadAt = now + fromHeadEveryMs;
    if (isFromHead || isLookBack) lookBackAt = now + lookBackEveryMs;
  };
}

function before(mark: string, ms: number): string {
  const at = Date.parse(mark);
  return Number.isNaN(at) ? mark : new Date(at - ms).toISOString();
}

/** A chunk of each topic in turn, so that one with a million leases holds up no other. */
async function reapTopics(term: Term, topicIds: readonly number[], since: string): Promise<void> {
  const names = await namesOf(term.db, 'topic', topicIds);
  const failures = new Failures();
  const marks = new Map(topicIds.map((id) => [id, since]));
  while (marks.size > 0) {
    for (const [topicId, from] of marks) {
      term.signal.throwIfAborted();
      const chunk = { topicId, name: names.get(topicId) ?? '', from };
      const next = await reapChunk(term, chunk).catch((error: unknown) => failures.add(error));
      if (next === undefined) marks.delete(topicId);
      else marks.set(topicId, next);
    }
  }
  failures.throwIfAny();
}

/** Where the next chunk starts; undefined when this was the last. */
async function reapChunk(
  term: Term,
  chunk: { readonly topicId: number; readonly name: string; readonly from: string },
): Promise<string | undefined> {
  const { topicId, name, from } = chunk;
  const reaped = await reap(term.db, topicId, term.term, { limit: leasesPerCall, since: from });
  term.wakeups.wake(topicId, reaped.woken);
  term.metrics.recordLeasesExpired({ topic: name, leases: reaped.expired_events });
  await recordDead(term, reaped);
  term.note?.('expired_events', reaped.expired_events);
  return reaped.more ? (reaped.mark ?? undefined) : undefined;
}
