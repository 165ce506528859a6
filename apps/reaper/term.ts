import type { Database } from '#db/client.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Metrics } from '#runtime/metrics.ts';

/** What the duties of one term work with. Each term has new ones, so that nothing that was remembered outlives it. */
export interface Term {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake'>;
  readonly metrics: Metrics;
  /** Shown to the database by every duty that changes something. */
  readonly term: string;
  /** Aborted when the term is over; asked between two chunks of work. */
  readonly signal: AbortSignal;
  /** Nothing becomes waiting, and no lease appears, further back than this from its commit: two statement timeouts. */
  readonly lookBackMs: number;
  /** For the span of the run: what it did, and to how many. */
  readonly note?: (what: string, count: number) => void;
}

/** One run of a duty; `'again'`: there was more than it should take at a time. */
export type DutyRun = () => Promise<'again' | void>;

/** A task of the leader: how often, and what. `begin` is called once a term, and keeps what a run tells the next. */
export interface Duty {
  /** Wait between two runs; absent: REAPER_INTERVAL_MS. */
  readonly intervalMs?: number;
  readonly begin: (term: Term) => DutyRun;
}
