import { failJob, redrive, unfinishedRedrives, type UnfinishedJob } from '#db/redrive.ts';
import { Failures } from './failures.ts';
import { JobSpans } from './job-spans.ts';
import type { DutyRun, Term } from './term.ts';

const lettersPerCall = 100;
const callsPerRun = 20;

/** Does a piece of every job in turn; so many calls a run that the others soon get theirs. */
export function runJobs(term: Term): DutyRun {
  return async () => {
    const failures = new Failures();
    const spans = new JobSpans();
    let jobs = await unfinishedRedrives(term.db);
    for (let calls = 0; jobs.length > 0 && calls < callsPerRun; calls += jobs.length) {
      const unfinished: UnfinishedJob[] = [];
      for (const job of jobs) {
        term.signal.throwIfAborted();
        const hasMore = await runPiece(term, job, spans).catch((error: unknown) => {
          failures.add(error);
          return false;
        });
        if (hasMore) unfinished.push(job);
      }
      jobs = unfinished;
    }
    spans.record();
    failures.throwIfAny();
    return jobs.length > 0 ? 'again' : undefined;
  };
}

/** Whether there is more of the job to do now. One that waits for its rate has its turn in the next run. */
async function runPiece(term: Term, job: UnfinishedJob, spans: JobSpans): Promise<boolean> {
  if (job.is_orphan) {
    await failJob(term.db, job.id, 'the subscription was deleted');
    return false;
  }
  const options = { jobId: job.id, limit: lettersPerCall };
  const startedAt = performance.now();
  const piece = await redrive(term.db, job.topic_id, term.term, options);
  spans.add(job, startedAt, piece);
  if (piece.woken !== null) term.wakeups.wake(job.topic_id, [piece.woken]);
  return !piece.finished && piece.redriven > 0;
}
