import { faultOf } from '#db/errors.ts';
import type { Leadership } from '#db/leader.ts';
import type { Logger } from '#runtime/logger.ts';
import { startLoop } from '#runtime/loop.ts';
import { duties } from './duties.ts';
import { DutySpan } from './duty-span.ts';
import type { Outage } from '#runtime/outage.ts';
import type { Duty, DutyRun, Term } from './term.ts';

export interface DutyLoopsOptions {
  readonly leadership: Leadership;
  readonly term: Omit<Term, 'term' | 'signal' | 'note'>;
  readonly reapIntervalMs: number;
  readonly logger: Pick<Logger, 'warn' | 'info'>;
  readonly outage: Outage;
  /** All of them, unless a test wants others. */
  readonly duties?: Readonly<Record<string, Duty>>;
}

export interface DutyLoops {
  /** Begins nothing more, and waits for what is under way. */
  stop(): Promise<void>;
}

/** Runs each duty in a loop of its own for as long as the leadership lasts: a slow or failing one holds up no other. */
export function startDuties(options: DutyLoopsOptions): DutyLoops {
  const { leadership } = options;
  const stopping = new AbortController();
  const signal = AbortSignal.any([leadership.lost, stopping.signal]);
  const term: Term = { ...options.term, term: leadership.term, signal };
  const loops = Object.entries(options.duties ?? duties).map(([name, duty]: [string, Duty]) => {
    const span = new DutySpan(name);
    const run = duty.begin({ ...term, note: span.note });
    const tick = guard(name, { ...options, signal, run, span });
    const intervalMs = duty.intervalMs ?? options.reapIntervalMs;
    return startLoop({ name, intervalMs, signal, onTick: tick });
  });
  return {
    async stop() {
      stopping.abort();
      await Promise.all(loops.map(async (loop) => loop.stop()));
    },
  };
}

interface Guarded extends DutyLoopsOptions {
  readonly run: DutyRun;
  readonly span: DutySpan;
  readonly signal: AbortSignal;
}

/** One tick of a duty: not without the leadership, measured, and with one line when it begins to fail and one when it works. */
function guard(name: string, options: Guarded): DutyRun {
  const { leadership, outage, logger, signal, run, span } = options;
  const { metrics } = options.term;
  let isFailing = false;
  return async () => {
    if (!leadership.isLeading()) return undefined;
    const began = performance.now();
    const record = (result: 'done' | 'failed' | 'fenced'): void => {
      metrics.recordDuty({
        duty: name,
        result,
        durationSeconds: (performance.now() - began) / 1000,
      });
      span.record(began, result, leadership.term);
    };
    try {
      const found = await run();
      record('done');
      outage.worked('duties', began);
      if (isFailing) logger.info({ duty: name }, 'duty works again');
      isFailing = false;
      return found;
    } catch (error) {
      if (signal.aborted) return undefined;
      const fault = faultOf(error);
      if (fault === 'term_over') {
        record('fenced');
        leadership.stepDown(new Error(`${name} was told that the term is over`, { cause: error }));
        return undefined;
      }
      record('failed');
      if (fault === 'unavailable' || fault === 'outcome_unknown') outage.failed('duties', error);
      else if (!isFailing) {
        isFailing = true;
        logger.warn({ duty: name, err: error }, 'duty fails, and tries again with backoff');
      }
      throw error;
    }
  };
}
