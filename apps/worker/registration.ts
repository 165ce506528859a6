import { setTimeout as delay } from 'node:timers/promises';
import { faultOf } from '#db/errors.ts';
import { WorkerSession, type WorkerSessionOptions } from '#db/worker-session.ts';
import type { Logger } from '#runtime/logger.ts';
import type { Outage } from '#runtime/outage.ts';

export interface RegistrationOptions extends Omit<WorkerSessionOptions, 'onChange'> {
  readonly logger: Pick<Logger, 'info' | 'warn' | 'error'>;
  readonly outage: Outage;
  /** A life has begun, is trusted again, or is over. */
  readonly onChange: (session: WorkerSession) => void;
}

const retryMs = { first: 100, max: 5000 };

/**
 * Keeps this process registered as a worker: when its leases were taken over, it begins a new life. So it does when a claim may
 * have leased something that it does not know of: the old life then ends, and others take over what is left of it.
 */
export class Registration {
  readonly #options: RegistrationOptions;
  readonly #closing = new AbortController();
  readonly #running: Promise<void>;
  /** Events that are known to be leased, by the life that they are leased in. */
  readonly #held = new Map<WorkerSession, number>();
  /** Lives that claim no more, until everything that is known to be leased in them is settled. */
  readonly #retired = new Set<WorkerSession>();
  #session: WorkerSession | undefined;
  #endLife: (() => void) | undefined;
  #failures = 0;

  constructor(options: RegistrationOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  /** The life in which this worker may claim and begin deliveries now; undefined: it may not. */
  get current(): WorkerSession | undefined {
    return this.#session?.isTrusted === true ? this.#session : undefined;
  }

  /** So many events more are leased in this life, or less. */
  count(session: WorkerSession, events: number): void {
    const held = (this.#held.get(session) ?? 0) + events;
    if (held === 0) this.#held.delete(session);
    else this.#held.set(session, held);
    if (held === 0 && this.#retired.has(session)) void this.#endRetired(session);
  }

  /** Something may be leased in this life that nobody knows of. */
  retire(session: WorkerSession): void {
    if (session !== this.#session) return;
    this.#session = undefined;
    this.#retired.add(session);
    this.#options.logger.warn(
      { worker: session.instance },
      'the outcome of a claim is unknown, it begins anew',
    );
    this.#endLife?.();
    if (!this.#held.has(session)) void this.#endRetired(session);
  }

  /** Ends the registration; with leases left, its row stays and others take them over. */
  async close(options: { readonly holdsLeases: boolean }): Promise<void> {
    this.#closing.abort();
    await this.#running;
    const retired = [...this.#retired];
    await Promise.all(retired.map((session) => this.#endRetired(session)));
    await this.#session?.close(options);
  }

  async #endRetired(session: WorkerSession): Promise<void> {
    this.#retired.delete(session);
    // the row stays, and its lock is free: what is leased in it is taken over
    await session.close({ holdsLeases: true });
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#live(signal);
      } catch (error) {
        if (signal.aborted) return;
        this.#noteFailure(error);
        const longestMs = Math.min(retryMs.max, retryMs.first * 2 ** Math.min(this.#failures, 10));
        this.#failures += 1;
        const waitMs = longestMs * (0.5 + Math.random() / 2);
        await delay(waitMs, undefined, { signal }).catch(() => undefined);
      }
    }
  }

  #noteFailure(error: unknown): void {
    const fault = faultOf(error);
    if (fault === 'unavailable' || fault === 'outcome_unknown') {
      this.#options.outage.failed('registration', error);
    } else if (this.#failures === 0) {
      this.#options.logger.error({ err: error }, 'cannot register as a worker');
    }
  }

  /** One life, until its leases are others', or it is retired. */
  async #live(closing: AbortSignal): Promise<void> {
    const { logger, outage, onChange } = this.#options;
    const began = performance.now();
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const session: WorkerSession = await WorkerSession.open({
      ...this.#options,
      onChange: () => {
        if (session.isGone) {
          logger.warn({ worker: session.instance }, 'its leases were taken over, it begins anew');
          end();
        }
        onChange(session);
      },
    });
    this.#session = session;
    this.#endLife = end;
    this.#failures = 0;
    outage.worked('registration', began);
    logger.info({ worker: session.instance }, 'registered');
    onChange(session);
    closing.addEventListener('abort', () => end(), { once: true });
    if (closing.aborted) end();
    await ended;
    if (!session.isGone) return;
    this.#session = undefined;
    await session.close({ holdsLeases: true });
  }
}
