import { setImmediate } from 'node:timers/promises';
import type { Logger } from './logger.ts';

export type LoopFailure = {
  readonly name: string;
  /** Failures in a row, this one included. */
  readonly failures: number;
  readonly retryInMs: number;
};

export type LoopOptions = {
  readonly name: string;
  /** Wait between the end of a tick and the beginning of the next, in milliseconds. */
  readonly intervalMs: number;
  /** One round of work. `'again'` starts the next at once: there was more than it could take. */
  readonly onTick: (signal: AbortSignal) => 'again' | void | Promise<'again' | void>;
  /**
   * Told of each failure. Throws what shall not be retried: the loop then ends and `finished`
   * rejects, which ends the process unless somebody waits for it.
   */
  readonly onError?: (error: unknown, failure: LoopFailure) => void;
  /** Aborting it ends the loop as `stop()` does. */
  readonly signal?: AbortSignal;
  /** Subscribes to a source of wake-ups; returns how to unsubscribe. */
  readonly wake?: (wake: () => void) => () => void;
  /** Each wait is shortened by up to this share of it, so that replicas do not tick together. */
  readonly jitter?: number;
  /** First and longest wait after failures in a row; it doubles from one to the other. */
  readonly errorBackoffMs?: { readonly first: number; readonly max: number };
  /** Gets one line when ticks begin to fail and one when they work again. */
  readonly logger?: Pick<Logger, 'warn' | 'info'>;
  /** For tests: called when the loop begins to wait, with the wait in milliseconds. */
  readonly onWait?: (waitMs: number) => void;
};

/** Calls `onTick` again and again, never two at a time: at start, after each interval, on wake-ups. */
export class Loop {
  readonly #options: LoopOptions;
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #wakeSleeper: (() => void) | undefined;
  #isWoken = false;
  #failures = 0;
  #failingSince = 0;

  constructor(options: LoopOptions) {
    this.#options = options;
  }

  /** Begins to tick; the second call, and one after `stop()`, change nothing. */
  start(): this {
    if (this.#running !== undefined || this.#stopping.signal.aborted) return this;
    this.#running = this.#run();
    return this;
  }

  /** Makes the next tick start as soon as the running one ends, but not earlier after a failure. */
  wake(): void {
    this.#isWoken = true;
    this.#wakeSleeper?.();
  }

  /** Resolves when the loop has ended; rejects when `onError` threw. */
  get finished(): Promise<void> {
    return this.#running ?? Promise.resolve();
  }

  /** Aborts the signal of the running tick and waits for its end; not to be awaited inside a tick. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.finished;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #run(): Promise<void> {
    const { signal: outer, wake } = this.#options;
    const abort = (): void => this.#stopping.abort();
    if (outer?.aborted === true) abort();
    outer?.addEventListener('abort', abort, { once: true });
    const unsubscribe = wake?.(() => this.wake());
    try {
      // Whoever made the loop shall have it in hand before the first tick.
      await Promise.resolve();
      while (!this.#stopping.signal.aborted) {
        const waitMs = await this.#tick();
        if (this.#stopping.signal.aborted) break;
        await this.#wait(waitMs);
      }
    } finally {
      unsubscribe?.();
      outer?.removeEventListener('abort', abort);
      this.#stopping.abort();
    }
  }

  async #tick(): Promise<number> {
    this.#isWoken = false;
    try {
      const found = await this.#options.onTick(this.#stopping.signal);
      this.#noteSuccess();
      return found === 'again' ? 0 : this.#jittered(this.#options.intervalMs);
    } catch (error) {
      // An aborted tick may fail in any way it likes.
      return this.#stopping.signal.aborted ? 0 : this.#noteFailure(error);
    }
  }

  #noteSuccess(): void {
    if (this.#failures === 0) return;
    const downMs = Math.round(performance.now() - this.#failingSince);
    const line = { loop: this.#options.name, failures: this.#failures, down_ms: downMs };
    this.#failures = 0;
    this.#options.logger?.info(line, 'loop recovered');
  }

  #noteFailure(error: unknown): number {
    const {
      name,
      logger,
      onError,
      errorBackoffMs: backoff = { first: 100, max: 5000 },
    } = this.#options;
    const doubled = backoff.first * 2 ** Math.min(this.#failures, 30);
    const retryInMs = this.#jittered(Math.min(doubled, backoff.max));
    this.#failures += 1;
    if (this.#failures === 1) {
      this.#failingSince = performance.now();
      logger?.warn({ loop: name, err: error }, 'loop fails, and tries again with backoff');
    }
    onError?.(error, { name, failures: this.#failures, retryInMs });
    return retryInMs;
  }

  #jittered(waitMs: number): number {
    return Math.max(0, waitMs * (1 - Math.random() * (this.#options.jitter ?? 0.1)));
  }

  // A wake-up must not shorten the wait after a failure: a busy topic would turn an outage of the
  // database into a hot loop.
  async #wait(waitMs: number): Promise<void> {
    const isDeaf = this.#failures > 0;
    const { signal } = this.#stopping;
    const effectiveMs = this.#isWoken && !isDeaf ? 0 : waitMs;
    if (effectiveMs === 0) {
      this.#options.onWait?.(0);
      await setImmediate();
      return;
    }
    await new Promise<void>((resolve) => {
      const timer = setTimeout(end, effectiveMs);
      const wakeSleeper = isDeaf ? undefined : end;
      function end(): void {
        clearTimeout(timer);
        signal.removeEventListener('abort', end);
        resolve();
      }
      this.#wakeSleeper = wakeSleeper;
      signal.addEventListener('abort', end, { once: true });
      this.#options.onWait?.(effectiveMs);
    });
    this.#wakeSleeper = undefined;
  }
}

/** Makes a loop and starts it. */
export function startLoop(options: LoopOptions): Loop {
  return new Loop(options).start();
}
