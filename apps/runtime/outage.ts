import type { Logger } from './logger.ts';

/** Says once that the database is away, and once that it is back, whichever parts of the process notice it. */
export class Outage {
  readonly #logger: Pick<Logger, 'warn' | 'info'>;
  /** When each failed last. */
  readonly #failing = new Map<string, number>();
  #since = 0;

  constructor(logger: Pick<Logger, 'warn' | 'info'>) {
    this.#logger = logger;
  }

  get isOver(): boolean {
    return this.#failing.size === 0;
  }

  failed(part: string, error: unknown): void {
    if (this.isOver) {
      this.#since = performance.now();
      this.#logger.warn({ part, err: error }, 'the database is away, trying again with backoff');
    }
    this.#failing.set(part, performance.now());
  }

  /** Something worked that began then; an answer that was under way when the others failed proves nothing. */
  worked(part: string, beganAt: number): void {
    const failedAt = this.#failing.get(part);
    if (failedAt === undefined || beganAt <= failedAt) return;
    this.#failing.delete(part);
    if (!this.isOver) return;
    const downMs = Math.round(performance.now() - this.#since);
    this.#logger.info({ down_ms: downMs }, 'the database is back');
  }
}
