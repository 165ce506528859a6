import { setTimeout as delay } from 'node:timers/promises';
import { faultOf } from '#db/errors.ts';
import type { Candidate, Leadership, Look } from '#db/leader.ts';
import type { Logger } from '#runtime/logger.ts';
import { startDuties, type DutyLoops, type DutyLoopsOptions } from './duty-loops.ts';

export interface LeadOptions extends Omit<DutyLoopsOptions, 'leadership'> {
  readonly candidate: Candidate;
  readonly logger: Pick<Logger, 'info' | 'warn' | 'error'>;
  /** Longest wait between two looks while the database is away (5000). */
  readonly backoffMaxMs?: number;
}

/** A process that leads whenever nobody else does. */
export class Reaper {
  readonly #options: LeadOptions;
  readonly #stopping = new AbortController();
  readonly #running: Promise<void>;
  /** Duties of terms that are over, until their last tick has ended. */
  readonly #ending = new Set<Promise<void>>();
  #leadership: Leadership | undefined;
  #duties: DutyLoops | undefined;
  #failures = 0;

  constructor(options: LeadOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  get isLeading(): boolean {
    return this.#leadership?.isLeading() ?? false;
  }

  /** Begins no more duties, and waits for those under way. */
  async stopDuties(): Promise<void> {
    this.#stopping.abort();
    await this.#duties?.stop();
    await Promise.all(this.#ending);
  }

  /** Gives the leadership up, so that another can lead at once. */
  async resign(): Promise<void> {
    this.#stopping.abort();
    await this.#leadership?.resign();
    await this.#options.candidate[Symbol.asyncDispose]();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { candidate } = this.#options;
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      try {
        const began = performance.now();
        const look = await candidate.look();
        this.#noteLooked(began);
        await this.#act(look);
      } catch (error) {
        if (signal.aborted) return;
        await this.#noteFailure(error);
      }
    }
  }

  async #act(look: Look): Promise<void> {
    const { signal } = this.#stopping;
    if (look.status === 'follows') {
      // Followers need not look in step.
      const waitMs = look.lookAgainMs * (0.9 + Math.random() / 10);
      await delay(waitMs, undefined, { signal }).catch(() => undefined);
    } else if (signal.aborted) await look.leadership.resign();
    else await this.#lead(look.leadership);
  }

  /** Returns when the leadership is lost. */
  async #lead(leadership: Leadership): Promise<void> {
    const { logger, term } = this.#options;
    this.#leadership = leadership;
    logger.info({ term: leadership.term }, 'leads');
    term.metrics.setLeader({ isLeader: true, term: Number(leadership.term) });
    const dutyLoops = startDuties({ ...this.#options, leadership });
    this.#duties = dutyLoops;
    await untilAborted(leadership.lost);
    const reason: unknown = leadership.lost.reason;
    logger.info({ term: leadership.term, reason: textOf(reason) }, 'leads no longer');
    term.metrics.setLeader({ isLeader: false, term: Number(leadership.term) });
    // Not waited for: what they still write is fenced, and the next leader may be this one.
    const ended = dutyLoops.stop().finally(() => this.#ending.delete(ended));
    this.#ending.add(ended);
  }

  #noteLooked(began: number): void {
    this.#failures = 0;
    this.#options.outage.worked('leadership', began);
    this.#options.outage.worked('duties', began);
  }

  async #noteFailure(error: unknown): Promise<void> {
    const { logger, outage, backoffMaxMs = 5000 } = this.#options;
    const fault = faultOf(error);
    if (fault === 'unavailable' || fault === 'outcome_unknown') outage.failed('leadership', error);
    else if (this.#failures === 0) logger.error({ err: error }, 'the look for a leader fails');
    this.#failures += 1;
    const longestMs = Math.min(backoffMaxMs, 100 * 2 ** Math.min(this.#failures, 20));
    const waitMs = longestMs * (0.5 + Math.random() / 2);
    await delay(waitMs, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
  }
}

function textOf(reason: unknown): string {
  if (!(reason instanceof Error)) return String(reason);
  return reason.cause instanceof Error
    ? `${reason.message}: ${reason.cause.message}`
    : reason.message;
}

async function untilAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
