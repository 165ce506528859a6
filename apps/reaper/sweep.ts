import { clockBefore } from '#db/clock.ts';
import { dueSubscriptions } from '#db/reap.ts';
import type { DutyRun, Term } from './term.ts';

const overlapMs = 10_000;

/** Wakes the subscriptions of which something became due since shortly before the last sweep: a NOTIFY may be lost. */
export function sweep(term: Term): DutyRun {
  let since = '-infinity';
  return async () => {
    const next = await clockBefore(term.db, overlapMs);
    for (const [topicId, { ids }] of await dueByTopic(term, since)) term.wakeups.wake(topicId, ids);
    since = next;
  };
}

/** Looks from the head of the queue, and tells claimers how far back theirs has to go to find what it saw. */
export function sweepFromHead(term: Term): DutyRun {
  return async () => {
    for (const [topicId, { ids, mark }] of await dueByTopic(term, '-infinity')) {
      term.wakeups.wake(topicId, ids, mark);
    }
  };
}

async function dueByTopic(term: Term, since: string) {
  const topics = new Map<number, { readonly ids: number[]; mark: string }>();
  for (const due of await dueSubscriptions(term.db, since)) {
    const topic = topics.get(due.topic_id) ?? { ids: [], mark: due.due_at };
    topics.set(due.topic_id, topic);
    topic.ids.push(due.subscription_id);
    if (Date.parse(due.due_at) < Date.parse(topic.mark)) topic.mark = due.due_at;
  }
  return topics;
}
