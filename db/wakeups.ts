import { setTimeout as delay } from 'node:timers/promises';
import { sql } from 'kysely';
import type { Database } from './client.ts';
import { connectDirect, type DirectConnection } from './direct-connection.ts';
import { WakeSender, decodeWake, type Wake } from './wake-sender.ts';

export type ChangeKind = 'topic' | 'subscription' | 'api_key' | 'log_level';

export interface WakeupsOptions {
  /** The pool, through which wake-ups are sent. */
  readonly db: Database;
  /** A direct connection, over which they are heard. */
  readonly directUrl: string;
  readonly applicationName: string;
  /** At most one NOTIFY per topic in so many milliseconds (20). */
  readonly coalesceMs?: number;
  /** How often the direct connection is tried (1000). */
  readonly pingMs?: number;
  /** How long an answer may take before the connection counts as lost (3000). */
  readonly answerMs?: number;
  /** Longest wait between two attempts to listen again (5000). */
  readonly backoffMaxMs?: number;
  readonly onSent?: (count: number) => void;
  readonly onReceived?: (count: number) => void;
  /** A wake-up of this process came back to it, so many milliseconds after it was asked for. */
  readonly onEcho?: (latencyMs: number) => void;
  /** Once when nothing is heard any more, and once when it is again. */
  readonly onProblem?: (error: unknown) => void;
  readonly onRecovered?: () => void;
}

/** The hints that something may be there to claim, and that something in a cache has changed. All of them may be lost. */
export interface Wakeups extends AsyncDisposable {
  /**
   * Something of these subscriptions may be claimed. Calls the listeners of this process at once and tells the other
   * processes soon. `mark`: it may have been due since then, earlier than a claimer looks.
   */
  wake(topicId: number, subscriptionIds: readonly number[], mark?: string): void;
  onWake(subscriptionId: number, listener: (mark?: string) => void): () => void;
  /** For who claims for everybody: all wake-ups, also those that name no subscriptions because there were too many. */
  onEveryWake(listener: (wake: Wake) => void): () => void;
  onChange(listener: (kind: ChangeKind, name: string) => void): () => void;
  /** Listening has begun, for the first time or again: what happened before was not heard. */
  onReconnect(listener: () => void): () => void;
  readonly listening: boolean;
  close(): Promise<void>;
}

const channels = { wake: 'broker_wake', changed: 'broker_changed' } as const;
const changeKinds: readonly string[] = [
  'topic',
  'subscription',
  'api_key',
  'log_level',
] satisfies ChangeKind[];

/** LISTEN was accepted and nothing came: a pooler that gives each transaction another session. */
export class NotificationsLost extends Error {
  override name = 'NotificationsLost';
}

/** Tells all processes that what they cache of `name` is old. Inside a transaction it takes effect with the commit. */
export async function announceChange(db: Database, kind: ChangeKind, name: string): Promise<void> {
  await sql`select pg_notify(${channels.changed}, ${`${kind} ${name}`})`.execute(db);
}

/** Begins to listen, and goes on until `close()`: over every outage, with backoff. */
export function createWakeups(options: WakeupsOptions): Wakeups {
  return new NotifyingWakeups(options);
}

class NotifyingWakeups implements Wakeups {
  readonly #options: WakeupsOptions;
  readonly #sender: WakeSender;
  readonly #closing = new AbortController();
  readonly #wakeListeners = new Map<number, Set<(mark?: string) => void>>();
  readonly #everyWakeListeners = new Set<(wake: Wake) => void>();
  readonly #changeListeners = new Set<(kind: ChangeKind, name: string) => void>();
  readonly #reconnectListeners = new Set<() => void>();
  readonly #running: Promise<void>;
  #heardProbe: ((nonce: string) => void) | undefined;
  #isListening = false;
  #hasProblem = false;
  #failures = 0;

  constructor(options: WakeupsOptions) {
    this.#options = options;
    this.#sender = new WakeSender({
      coalesceMs: options.coalesceMs ?? 20,
      send: async (payloads) => {
        await notify(options.db, payloads);
        options.onSent?.(payloads.length);
      },
    });
    this.#running = this.#run();
  }

  get listening(): boolean {
    return this.#isListening;
  }

  wake(topicId: number, subscriptionIds: readonly number[], mark?: string): void {
    if (subscriptionIds.length === 0) return;
    this.#callWakeListeners({ topicId, subscriptionIds, mark });
    if (!this.#closing.signal.aborted) this.#sender.add(topicId, subscriptionIds, mark);
  }

  onWake(subscriptionId: number, listener: (mark?: string) => void): () => void {
    const listeners = this.#wakeListeners.get(subscriptionId) ?? new Set();
    this.#wakeListeners.set(subscriptionId, listeners.add(listener));
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0 && this.#wakeListeners.get(subscriptionId) === listeners) {
        this.#wakeListeners.delete(subscriptionId);
      }
    };
  }

  onEveryWake(listener: (wake: Wake) => void): () => void {
    this.#everyWakeListeners.add(listener);
    return () => void this.#everyWakeListeners.delete(listener);
  }

  onChange(listener: (kind: ChangeKind, name: string) => void): () => void {
    this.#changeListeners.add(listener);
    return () => void this.#changeListeners.delete(listener);
  }

  onReconnect(listener: () => void): () => void {
    this.#reconnectListeners.add(listener);
    return () => void this.#reconnectListeners.delete(listener);
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all([this.#sender.close(), this.#running]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#listen(signal);
      } catch (error) {
        if (!signal.aborted) this.#noteProblem(error);
      }
      this.#isListening = false;
      this.#failures += 1;
      await delay(this.#backoff(), undefined, { signal }).catch(() => undefined);
    }
  }

  /** One connection, from its start to its loss; always ends with an error unless it is told to close. */
  async #listen(closing: AbortSignal): Promise<void> {
    const { directUrl: url, applicationName, answerMs = 3000, pingMs = 1000 } = this.#options;
    const statementTimeoutMs = Math.ceil(answerMs / 2);
    const connection = await connectDirect({ url, applicationName, statementTimeoutMs });
    const stop = (): void => connection.destroy();
    closing.addEventListener('abort', stop, { once: true });
    try {
      if (closing.aborted) return;
      connection.onNotification((channel, payload) => this.#receive(channel, payload));
      for (const channel of Object.values(channels)) await connection.query(`listen ${channel}`);
      await this.#provesToHear(connection, answerMs);
      this.#noteListening();
      for (;;) {
        await delay(pingMs, undefined, { signal: connection.lost }).catch(() => undefined);
        if (connection.lost.aborted) throw new Error('the direct connection was lost');
        await connection.query('select 1');
      }
    } finally {
      closing.removeEventListener('abort', stop);
      connection.destroy();
    }
  }

  /** Sends a word to itself over the pool: over the same connection even a transaction pooler would hand it back. */
  async #provesToHear(connection: DirectConnection, answerMs: number): Promise<void> {
    const nonce = crypto.randomUUID();
    const { promise, resolve } = Promise.withResolvers<'heard' | 'silence' | 'lost'>();
    this.#heardProbe = (found) => {
      if (found === nonce) resolve('heard');
    };
    const timer = setTimeout(() => resolve('silence'), answerMs);
    const lost = (): void => resolve('lost');
    connection.lost.addEventListener('abort', lost, { once: true });
    try {
      await notify(this.#options.db, [`probe ${nonce}`]);
      const answer = await promise;
      if (answer === 'lost') throw new Error('the direct connection was lost');
      if (answer === 'heard') return;
      throw new NotificationsLost(
        'LISTEN hears nothing on the direct connection: is there a transaction pooler in DATABASE_DIRECT_URL?',
      );
    } finally {
      clearTimeout(timer);
      connection.lost.removeEventListener('abort', lost);
      this.#heardProbe = undefined;
    }
  }

  #receive(channel: string, payload: string): void {
    if (channel === channels.changed) {
      const space = payload.indexOf(' ');
      const kind = payload.slice(0, space);
      if (!changeKinds.includes(kind)) return;
      for (const listener of this.#changeListeners) {
        listener(kind as ChangeKind, payload.slice(space + 1));
      }
    } else if (payload.startsWith('probe ')) this.#heardProbe?.(payload.slice(6));
    else {
      const wake = decodeWake(payload);
      if (wake === undefined) return;
      if (wake.origin === this.#sender.origin) return this.#noteEcho(wake);
      this.#options.onReceived?.(1);
      this.#callWakeListeners(wake);
    }
  }

  #noteEcho({ askedAt }: Wake): void {
    if (askedAt !== undefined) this.#options.onEcho?.(Math.max(0, performance.now() - askedAt));
  }

  #callWakeListeners(wake: Wake): void {
    const { subscriptionIds, mark } = wake;
    for (const listener of this.#everyWakeListeners) listener(wake);
    // A list that was too long to be sent means that any subscription may have something.
    const ids = subscriptionIds ?? [...this.#wakeListeners.keys()];
    for (const id of ids) {
      for (const listener of this.#wakeListeners.get(id) ?? []) listener(mark);
    }
  }

  #noteListening(): void {
    this.#isListening = true;
    this.#failures = 0;
    if (this.#hasProblem) this.#options.onRecovered?.();
    this.#hasProblem = false;
    for (const listener of this.#reconnectListeners) listener();
  }

  #noteProblem(error: unknown): void {
    if (this.#hasProblem) return;
    this.#hasProblem = true;
    this.#options.onProblem?.(error);
  }

  #backoff(): number {
    const longest = Math.min(
      50 * 2 ** Math.min(this.#failures, 20),
      this.#options.backoffMaxMs ?? 5000,
    );
    return longest * (0.5 + Math.random() / 2);
  }
}

async function notify(db: Database, payloads: readonly string[]): Promise<void> {
  await sql`select pg_notify(${channels.wake}, p) from unnest(${payloads}::text[]) p`.execute(db);
}
