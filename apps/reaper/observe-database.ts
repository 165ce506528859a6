import { observeDatabase } from '#db/observe.ts';
import type { DutyRun, Term } from './term.ts';

/** Looks at what the database has to say about itself, for the metrics of the leader. */
export function observe(term: Term): DutyRun {
  return async () => {
    const seen = await observeDatabase(term.db);
    if (!term.signal.aborted) term.metrics.setDatabaseObservation(seen);
  };
}
