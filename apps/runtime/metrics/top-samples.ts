import { otherName } from '../name-limit.ts';

/** What the leader counts of one subscription. */
export interface BacklogSample {
  readonly topic: string;
  readonly subscription: string;
  readonly waiting: number;
  readonly leased: number;
  readonly oldestWaitingSeconds: number;
  readonly deadLetters: number;
  /** `max_backlog` of the topic. */
  readonly backlogLimit: number;
}

const measures = ['waiting', 'oldestWaitingSeconds', 'deadLetters', 'leased'] as const;

/**
 * At most `max` samples as they are, and the sum of all others as one more: chosen in turn are the one with the most waiting, the
 * one that waits the longest, the one with the most dead letters and the one with the most leased. Of more subscriptions than
 * `max`, those that have none of these are among the others.
 */
export function topSamples(samples: readonly BacklogSample[], max: number): BacklogSample[] {
  if (samples.length <= max) return [...samples];
  const chosen = new Set<BacklogSample>();
  const ranks = measures.map((measure) =>
    samples
      .filter((sample) => sample[measure] > 0)
      .toSorted((a, b) => b[measure] - a[measure] || byName(a, b)),
  );
  for (let place = 0; ranks.some((rank) => place < rank.length); place += 1) {
    for (const rank of ranks) {
      const sample = rank[place];
      if (sample !== undefined && chosen.size < max) chosen.add(sample);
    }
    if (chosen.size >= max) break;
  }
  return [...chosen, sumOf(samples.filter((sample) => !chosen.has(sample)))];
}

function byName(a: BacklogSample, b: BacklogSample): number {
  return a.subscription < b.subscription ? -1 : 1;
}

function sumOf(samples: readonly BacklogSample[]): BacklogSample {
  const sum = { waiting: 0, leased: 0, oldestWaitingSeconds: 0, deadLetters: 0 };
  for (const sample of samples) {
    sum.waiting += sample.waiting;
    sum.leased += sample.leased;
    sum.deadLetters += sample.deadLetters;
    sum.oldestWaitingSeconds = Math.max(sum.oldestWaitingSeconds, sample.oldestWaitingSeconds);
  }
  return { topic: otherName, subscription: otherName, backlogLimit: 0, ...sum };
}
