import { recordSpan } from '#runtime/tracing.ts';

/** What shorter runs do is told by metrics. */
const longMs = 100;

/**
 * A run of a duty becomes a span when it changed something, took 100 ms, or failed: most runs look and find nothing, ten times a
 * second and for ever. So there is at most one span a run, and none of the runs that tell nothing.
 */
export class DutySpan {
  readonly #name: string;
  /** What the run has done so far. Runs of one duty never overlap. */
  readonly #counts = new Map<string, number>();

  constructor(name: string) {
    this.#name = name;
  }

  /** The run did something to so many, e.g. `expired_events`. */
  readonly note = (what: string, count: number): void => {
    if (count > 0) this.#counts.set(what, (this.#counts.get(what) ?? 0) + count);
  };

  /** The run has ended. `startedAt` by performance.now(). */
  record(startedAt: number, result: 'done' | 'failed' | 'fenced', term: string): void {
    const isWorthIt =
      result !== 'done' || this.#counts.size > 0 || performance.now() - startedAt >= longMs;
    if (isWorthIt) {
      const counts = [...this.#counts].map(([what, count]) => [`event_broker.${what}`, count]);
      recordSpan(`duty ${this.#name}`, {
        parent: 'root',
        isRare: true,
        attributes: {
          'event_broker.duty': this.#name,
          'event_broker.term': term,
          ...(Object.fromEntries(counts) as Record<string, number>),
        },
        startedAt,
        error: result === 'done' ? undefined : result,
      });
    }
    this.#counts.clear();
  }
}
