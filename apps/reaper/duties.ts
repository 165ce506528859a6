import { countDeadLetters, sampleBacklog } from '#db/backlog.ts';
import { ensurePartitions } from '#db/partitions.ts';
import { forgetProcesses } from '#db/processes.ts';
import { purgeDeleted, purgeIdempotencyKeys } from '#db/purge.ts';
import { backlogSamples } from '#db/stats.ts';
import { observe } from './observe-database.ts';
import { reapLeases } from './reap-leases.ts';
import { retirePartitions } from './retire-partitions.ts';
import { runJobs } from './run-jobs.ts';
import { sweep, sweepFromHead } from './sweep.ts';
import { takeOverLeases } from './take-over.ts';
import type { Duty, DutyRun, Term } from './term.ts';

const rowsPerPurge = 1000;

/** Everything that the leader does. Each runs by itself, first at once when the term begins. */
export const duties = {
  sweep: { intervalMs: 250, begin: sweep },
  sweep_from_head: { intervalMs: 60_000, begin: sweepFromHead },
  reap: { begin: reapLeases },
  take_over: { intervalMs: 500, begin: takeOverLeases },
  sample_backlog: { intervalMs: 1000, begin: sample },
  count_dead_letters: { intervalMs: 5000, begin: countDead },
  ensure_partitions: { intervalMs: 60_000, begin: makePartitions },
  retire_partitions: { intervalMs: 60_000, begin: retirePartitions },
  purge_deleted: { intervalMs: 5000, begin: purgeSubscriptions },
  purge_idempotency_keys: { intervalMs: 10_000, begin: purgeKeys },
  run_jobs: { intervalMs: 500, begin: runJobs },
  forget_processes: { intervalMs: 60_000, begin: forget },
  observe_database: { intervalMs: 15_000, begin: observe },
} satisfies Record<string, Duty>;

export type DutyName = keyof typeof duties;

function sample(term: Term): DutyRun {
  return async () => {
    await sampleBacklog(term.db);
    const rows = await backlogSamples(term.db);
    if (term.signal.aborted) return;
    term.metrics.setBacklog(
      rows.map((row) => ({
        topic: row.topic,
        subscription: row.subscription,
        waiting: row.waiting_events,
        leased: row.leased_events,
        oldestWaitingSeconds: row.oldest_waiting_seconds,
        deadLetters: row.dead_letters,
        backlogLimit: row.max_backlog,
      })),
    );
  };
}

function countDead(term: Term): DutyRun {
  return () => countDeadLetters(term.db);
}

function makePartitions(term: Term): DutyRun {
  return async () => void (await ensurePartitions(term.db));
}

function purgeSubscriptions(term: Term): DutyRun {
  return async () =>
    (await purgeDeleted(term.db, term.term, rowsPerPurge)) > 0 ? 'again' : undefined;
}

function purgeKeys(term: Term): DutyRun {
  return async () => {
    const purged = await purgeIdempotencyKeys(term.db, term.term, rowsPerPurge);
    return purged >= rowsPerPurge ? 'again' : undefined;
  };
}

function forget(term: Term): DutyRun {
  return async () => void (await forgetProcesses(term.db));
}
