import type { Ledger, Push, Way } from './ledger.ts';

/** What became of everything that was pushed, counted. */
export interface PushFindings {
  /** Requests that the endpoint got. */
  readonly requests: number;
  readonly events: number;
  readonly signatures: number;
  readonly badSignatures: number;
  /** From the begin of a publish to the first request with its event. */
  readonly arrivalMs: readonly number[];
  /** The longest time from the begin of a publish to the acceptance of its event, retries included. */
  readonly worstMs: number;
}

/** Undefined when nothing was to be pushed. */
export function pushFindingsOf(
  ledger: Ledger,
  subscription: string | undefined,
): PushFindings | undefined {
  if (subscription === undefined) return undefined;
  const ways = ledger.ways.filter((way) => way.subscription === subscription);
  const arrivalMs: number[] = [];
  let [requests, worstMs] = [0, 0];
  for (const { event, pushes } of ways) {
    requests += pushes.length;
    const startedAt = ledger.startedAt(event);
    const [first] = pushes;
    if (first !== undefined) arrivalMs.push(first.receivedAt - startedAt);
    const accepted = pushes.find(({ end, isRedriven }) => end === 'accepted' && !isRedriven);
    if (accepted !== undefined) worstMs = Math.max(worstMs, accepted.receivedAt - startedAt);
  }
  const { signatures, badSignatures } = ledger;
  return { requests, events: ways.length, signatures, badSignatures, arrivalMs, worstMs };
}

export interface Explanation {
  readonly kind: 'retry' | 'duplicate' | 'redrive';
  readonly what: string;
  readonly isFault: boolean;
}

/** Whether an event was pushed again although the endpoint was done with it, so that the broker has to say why. */
export function isRepeated({ pushes }: Way): boolean {
  return inOrder(pushes).some((push, index, all) => {
    const next = all[index + 1];
    const isDone = push.end === 'accepted' || push.end === 'rejected';
    return isDone && next !== undefined && next.isRedriven === push.isRedriven;
  });
}

/** By round and attempt: a machine that is busy may read a late request first. */
function inOrder(pushes: readonly Push[]): Push[] {
  return pushes.toSorted(
    (a, b) => Number(a.isRedriven) - Number(b.isRedriven) || a.attempt - b.attempt,
  );
}

/** Why each push beyond the first was made. */
export function* explainPushes(way: Way, attemptsMax: number): Generator<Explanation> {
  const pushes = inOrder(way.pushes);
  for (const [index, push] of pushes.entries()) {
    if (push.attempt > attemptsMax) {
      const what = `came for attempt ${push.attempt} of ${attemptsMax}`;
      yield { kind: 'retry', what, isFault: true };
    }
    const previous = pushes[index - 1];
    if (previous !== undefined) yield explainNext(previous, push);
  }
}

function explainNext(previous: Push, next: Push): Explanation {
  if (next.isRedriven && !previous.isRedriven) {
    return { kind: 'redrive', what: 'came again after the redrive', isFault: false };
  }
  const least = previous.end === 'delayed' ? previous.attempt : previous.attempt + 1;
  if (next.attempt < least) {
    const what = `came for attempt ${next.attempt} when ${previous.attempt} had been ${previous.end}`;
    return { kind: 'retry', what, isFault: true };
  }
  switch (previous.end) {
    case 'failed':
      return { kind: 'retry', what: 'answered 500', isFault: false };
    case 'delayed':
      return { kind: 'retry', what: 'answered 429 with Retry-After', isFault: false };
    case 'hung':
      return { kind: 'retry', what: 'never answered', isFault: false };
    case 'dropped':
      return { kind: 'retry', what: 'connection dropped', isFault: false };
    case 'broken':
      return {
        kind: 'duplicate',
        what: 'the connection was gone before the answer',
        isFault: false,
      };
    case 'open':
    case 'accepted':
    case 'rejected':
      if (!previous.isRedriven && previous.way.timedOut.has(previous.attempt)) {
        return { kind: 'duplicate', what: 'answered when the broker had given up', isFault: false };
      }
      return {
        kind: 'duplicate',
        what: `was pushed again although ${previous.end}`,
        isFault: true,
      };
  }
}
