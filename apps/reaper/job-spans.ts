import type { Redriven, UnfinishedJob } from '#db/redrive.ts';
import { recordSpan } from '#runtime/tracing.ts';

interface Done {
  readonly startedAt: number;
  redriven: number;
  isFinished: boolean;
}

/** What one run of `run_jobs` did for each job: one span each of those that it did something for. */
export class JobSpans {
  readonly #jobs = new Map<UnfinishedJob['id'], Done>();

  /** A piece of a job is done; `startedAt` by performance.now(). */
  add({ id }: UnfinishedJob, startedAt: number, piece: Redriven): void {
    const done = this.#jobs.get(id) ?? { startedAt, redriven: 0, isFinished: false };
    this.#jobs.set(id, done);
    done.redriven += piece.redriven;
    done.isFinished ||= piece.finished;
  }

  record(): void {
    for (const [id, { startedAt, redriven, isFinished }] of this.#jobs) {
      if (redriven === 0 && !isFinished) continue;
      recordSpan('job redrive', {
        parent: 'root',
        isRare: true,
        attributes: {
          'event_broker.job': id,
          'event_broker.redriven_events': redriven,
          'event_broker.is_finished': isFinished,
        },
        startedAt,
      });
    }
  }
}
