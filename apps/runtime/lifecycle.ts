import type { Logger } from './logger.ts';

/**
 * The order of a shutdown. All steps of a phase run side by side, and the next phase begins when
 * they have ended; those of `close` run one after the other, last registered first.
 */
export const shutdownPhases = [
  'readiness', // say that we are going, so that no new work is sent here
  'intake', // stop to accept and to claim
  'drain', // let what is in flight end
  'flush', // write what is buffered
  'release', // give back what was leased and not finished
  'close', // listeners, then connections, then an embedded database
  'telemetry', // the last logs, metrics and traces
] as const;

export type ShutdownPhase = (typeof shutdownPhases)[number];

export type ShutdownStep = (deadline: AbortSignal) => void | Promise<void>;

export type LifecycleOptions = {
  readonly logger: Pick<Logger, 'info' | 'error' | 'fatal'>;
  /** From the first signal to a forced exit, in milliseconds. */
  readonly shutdownTimeoutMs: number;
  /** A second signal this soon after the first is the same one, in milliseconds (300). */
  readonly signalGraceMs?: number;
};

type Registered = { readonly name: string; readonly step: ShutdownStep };

const signalExitCodes = { SIGINT: 130, SIGTERM: 143 } as const;
type StopSignal = keyof typeof signalExitCodes;

/**
 * One process from its start to its end, for all services in it. The first SIGTERM or SIGINT
 * aborts `signal` and runs the registered steps; the process then ends by itself, with code 0
 * unless a step failed (1). A second signal ends it at once (130 after SIGINT, 143 after SIGTERM);
 * the deadline, an uncaught exception and an unhandled rejection end it with 1.
 */
export class Lifecycle {
  readonly #logger: LifecycleOptions['logger'];
  readonly #timeoutMs: number;
  readonly #signalGraceMs: number;
  readonly #stopping = new AbortController();
  readonly #deadline = new AbortController();
  readonly #steps = new Map<ShutdownPhase, Registered[]>();
  readonly #finished = Promise.withResolvers<void>();
  readonly #unfinished = new Set<string>();
  #phase = -1;
  #signalledAt = 0;

  constructor(options: LifecycleOptions) {
    this.#logger = options.logger;
    this.#timeoutMs = options.shutdownTimeoutMs;
    this.#signalGraceMs = options.signalGraceMs ?? 300;
    process.on('SIGTERM', this.#onSignal);
    process.on('SIGINT', this.#onSignal);
    process.on('uncaughtException', this.#onUncaught);
    process.on('unhandledRejection', this.#onUnhandled);
  }

  /** Aborted when the process begins to stop. */
  get signal(): AbortSignal {
    return this.#stopping.signal;
  }

  get isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** Resolves when all steps of the shutdown have ended. */
  get finished(): Promise<void> {
    return this.#finished.promise;
  }

  /**
   * Registers a step of the shutdown. The step's signal is aborted at 80 % of the time that there
   * is, so that it can give up what does not end. Registered too late, it runs at once.
   */
  onShutdown(phase: ShutdownPhase, name: string, step: ShutdownStep): void {
    if (this.#phase >= shutdownPhases.indexOf(phase)) {
      void this.#runStep(phase, { name, step });
      return;
    }
    const steps = this.#steps.get(phase) ?? [];
    steps.push({ name, step });
    this.#steps.set(phase, steps);
  }

  /** Begins the shutdown; the second call changes nothing. */
  stop(reason: string): void {
    if (this.isStopping) return;
    this.#logger.info({ reason }, 'stopping');
    this.#stopping.abort();
    void this.#shutDown();
  }

  /** Begins the shutdown because of an error: the process will end with code 1. */
  fail(error: unknown, message: string): void {
    this.#logger.fatal({ err: error }, message);
    process.exitCode = 1;
    this.stop(message);
  }

  async #shutDown(): Promise<void> {
    const startedAt = performance.now();
    const giveUp = setTimeout(() => this.#deadline.abort(), this.#timeoutMs * 0.8);
    const force = setTimeout(this.#onDeadline, this.#timeoutMs);
    for (const [index, phase] of shutdownPhases.entries()) {
      this.#phase = index;
      const steps = this.#steps.get(phase) ?? [];
      if (phase === 'close') {
        for (const registered of steps.toReversed()) await this.#runStep(phase, registered);
      } else await Promise.all(steps.map((registered) => this.#runStep(phase, registered)));
    }
    clearTimeout(giveUp);
    // From here on the process ends by itself, unless something keeps it: then the deadline does.
    force.unref();
    this.#logger.info({ took_ms: Math.round(performance.now() - startedAt) }, 'stopped');
    this.#finished.resolve();
  }

  async #runStep(phase: ShutdownPhase, { name, step }: Registered): Promise<void> {
    const label = `${phase}: ${name}`;
    this.#unfinished.add(label);
    try {
      await step(this.#deadline.signal);
    } catch (error) {
      // The later steps still have work to save, so a failure must not stop the shutdown.
      this.#logger.error({ err: error, phase, step: name }, 'a step of the shutdown failed');
      process.exitCode = 1;
    }
    this.#unfinished.delete(label);
  }

  readonly #onSignal = (signal: NodeJS.Signals): void => {
    const now = performance.now();
    if (this.#signalledAt === 0) {
      this.#signalledAt = now;
      this.stop(signal);
      return;
    }
    // Ctrl-C under npm arrives twice: from the terminal, and passed on by npm.
    if (now - this.#signalledAt < this.#signalGraceMs) return;
    this.#logger.fatal({ reason: signal, unfinished: [...this.#unfinished] }, 'forced to exit');
    process.exit(signalExitCodes[signal as StopSignal]);
  };

  readonly #onDeadline = (): void => {
    const unfinished = [...this.#unfinished];
    const active = process.getActiveResourcesInfo();
    this.#logger.fatal(
      { unfinished, active, timeout_ms: this.#timeoutMs },
      'not stopped in time, forced to exit',
    );
    process.exit(1);
  };

  readonly #onUncaught = (error: unknown): void => {
    this.#logger.fatal({ err: error }, 'uncaught exception');
    process.exit(1);
  };

  readonly #onUnhandled = (error: unknown): void => {
    this.#logger.fatal({ err: error }, 'unhandled rejection');
    process.exit(1);
  };
}
