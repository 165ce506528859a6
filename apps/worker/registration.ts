import { setTimeout as delay } from 'node:timers/promises';
import { WorkerSession, type WorkerSessionOptions } from '#db/worker-session.ts';
import type { Logger } from '#runtime/logger.ts';
import type { Outage } from '#runtime/outage.ts';

export interface RegistrationOptions extends Omit<WorkerSessionOptions, 'onChange'> {
  readonly logger: Pick<Logger, 'info' | 'warn'>;
  readonly outage: Outage;
  /** A life has begun, is trusted again, or is over. */
  readonly onChange: (session: WorkerSession) => void;
}

const retryMs = { first: 100, max: 5000 };

/** Keeps this process registered as a worker: when its leases were taken over, it begins a new life. */
export class Registration {
  readonly #options: RegistrationOptions;
  readonly #closing = new AbortController();
  readonly #running: Promise<void>;
  #session: WorkerSession | undefined;
  #failures = 0;

  constructor(options: RegistrationOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  /** The life in which this worker may claim and begin deliveries now; undefined: it may not. */
  get current(): WorkerSession | undefined {
    return this.#session?.isTrusted === true ? this.#session : undefined;
  }

  /** Ends the registration; with leases left, its row stays and others take them over. */
  async close(options: { readonly holdsLeases: boolean }): Promise<void> {
    this.#closing.abort();
    await this.#running;
    await this.#session?.close(options);
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#live(signal);
      } catch (error) {
        if (signal.aborted) return;
        this.#options.outage.failed('registration', error);
        const longestMs = Math.min(retryMs.max, retryMs.first * 2 ** Math.min(this.#failures, 10));
        this.#failures += 1;
        const waitMs = longestMs * (0.5 + Math.random() / 2);
        await delay(waitMs, undefined, { signal }).catch(() => undefined);
      }
    }
  }

  /** One life, until its leases are others'. */
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
    this.#failures = 0;
    outage.worked('registration', began);
    logger.info({ worker: session.instance }, 'registered');
    onChange(session);
    closing.addEventListener('abort', () => end(), { once: true });
    if (closing.aborted) end();
    await ended;
    if (session.isGone) await session.close({ holdsLeases: true });
  }
}
