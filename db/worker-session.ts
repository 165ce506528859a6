import { setTimeout as delay } from 'node:timers/promises';
import { connectDirect, type DirectConnection } from './direct-connection.ts';
import { faultOf } from './errors.ts';
import type { ProcessInfo } from './processes.ts';

export interface WorkerSessionOptions {
  readonly directUrl: string;
  readonly applicationName: string;
  /** The name of the process; a number is added, so that no two lives of one name are taken for each other. */
  readonly info: ProcessInfo;
  /** How often it proves that it lives. */
  readonly heartbeatMs?: number;
  /** How long an answer may take before the connection counts as lost; the server gives the statement up after half of it. */
  readonly answerMs?: number;
  /** How long it trusts its last proof, counted from when that was sent. */
  readonly trustMs?: number;
  /** After so long without a proof it ends a life whose lock it cannot have. */
  readonly silentMs?: number;
  /** It is trusted again, or it is gone. */
  readonly onChange?: () => void;
}

/**
 * What the options are unless they are given. A server that does not hear us any more frees the lock 4 s after it heard us
 * last (direct-connection.ts), and others then take our leases: the trust ends before. It lasts over one heartbeat that
 * takes up to 1.5 s. `silentMs` is the age of a heartbeat at which we are gone for others (functions/take_over.sql).
 */
export const sessionTimes = {
  heartbeatMs: 1000,
  answerMs: 2000,
  trustMs: 3000,
  silentMs: 10_000,
} as const;

const reconnectMs = { first: 50, max: 1000 };

/**
 * One life of a worker, as the others know it: a row in `broker.worker` and a session lock on its number. Its leases are its
 * own until the lock is free, or its heartbeat is older than 10 s (functions/take_over.sql). A connection that breaks is made
 * again and the same lock taken, unless others have found it free before: then the worker is gone, and begins a new life.
 */
export class WorkerSession {
  /** What its leases are marked with. */
  readonly instance: string;
  readonly #options: Required<WorkerSessionOptions>;
  readonly #lockKey: number;
  readonly #ending = new AbortController();
  readonly #running: Promise<void>;
  #connection: DirectConnection | undefined;
  #provenAt: number;
  #isGone = false;

  private constructor(
    options: Required<WorkerSessionOptions>,
    life: { connection: DirectConnection; lockKey: number; provenAt: number },
  ) {
    this.#options = options;
    this.#lockKey = life.lockKey;
    this.#connection = life.connection;
    this.#provenAt = life.provenAt;
    this.instance = instanceName(options.info, life.lockKey);
    this.#running = this.#run();
  }

  /** Takes a number that nobody holds, and makes the row. Throws when the database is away. */
  static async open(options: WorkerSessionOptions): Promise<WorkerSession> {
    const filled = { ...sessionTimes, onChange: () => undefined, ...options };
    const connection = await connect(filled);
    try {
      const lockKey = await takeNumber(connection);
      const provenAt = performance.now();
      const { service, version, host, pid } = options.info;
      await connection.query(
        `insert into broker.worker (instance, service, version, host, pid, lock_key) values ($1, $2, $3, $4, $5, $6)`,
        [instanceName(options.info, lockKey), service, version, host, pid, lockKey],
      );
      return new WorkerSession(filled, { connection, lockKey, provenAt });
    } catch (error) {
      connection.destroy();
      throw error;
    }
  }

  /** Others take its leases, or have: nothing that it holds may be begun any more. */
  get isGone(): boolean {
    return this.#isGone;
  }

  /**
   * Its leases are certainly its own. False also before any timer has run in a process that was stopped and goes on. To be
   * asked before each claim and each delivery.
   */
  get isTrusted(): boolean {
    return (
      !this.#isGone &&
      !this.#ending.signal.aborted &&
      this.#connection?.lost.aborted === false &&
      performance.now() - this.#provenAt < this.#options.trustMs
    );
  }

  /** A claim was told so. */
  noteGone(): void {
    if (this.#isGone) return;
    this.#isGone = true;
    this.#ending.abort();
    this.#connection?.destroy();
    this.#options.onChange();
  }

  /** Ends this life. With `holdsLeases` the row stays, so that others take them over; else it is removed. */
  async close({ holdsLeases }: { readonly holdsLeases: boolean }): Promise<void> {
    this.#ending.abort();
    await this.#running;
    const connection = this.#connection;
    this.#connection = undefined;
    if (connection === undefined) return;
    if (!holdsLeases && !this.#isGone) {
      await connection
        .query('delete from broker.worker where instance = $1 and gone_at is null', [this.instance])
        .catch(() => undefined);
    }
    await connection.end();
  }

  async #run(): Promise<void> {
    const { heartbeatMs } = this.#options;
    const { signal } = this.#ending;
    let failures = 0;
    while (!signal.aborted) {
      const waitMs =
        failures === 0
          ? Math.max(0, this.#provenAt + heartbeatMs - performance.now())
          : Math.min(reconnectMs.first * 2 ** Math.min(failures, 10), reconnectMs.max);
      await this.#sleep(waitMs, failures === 0);
      if (signal.aborted) return;
      const wasTrusted = this.isTrusted;
      failures = (await this.#prove()) ? 0 : failures + 1;
      if (!wasTrusted && this.isTrusted) this.#options.onChange();
    }
  }

  /** Until the next heartbeat; less when the connection is lost meanwhile. */
  async #sleep(ms: number, isConnected: boolean): Promise<void> {
    const signals = [this.#ending.signal];
    if (isConnected && this.#connection !== undefined) signals.push(this.#connection.lost);
    await delay(ms, undefined, { signal: AbortSignal.any(signals) }).catch(() => undefined);
  }

  /** Takes the lock again if need be, then says that it lives; whether it could. */
  async #prove(): Promise<boolean> {
    try {
      if (this.#connection?.lost.aborted !== false) await this.#reconnect();
      const sentAt = performance.now();
      const rows = await this.#connection?.query(
        `update broker.worker set heartbeat_at = clock_timestamp()
          where instance = $1 and gone_at is null returning instance`,
        [this.instance],
      );
      if (rows?.length === 0) this.noteGone();
      this.#provenAt = sentAt;
      return true;
    } catch (error) {
      const fault = faultOf(error);
      // a server that is only slow still keeps our lock; to cut the line would give it away
      const isSlow = fault === 'statement_timeout' || fault === 'lock_timeout';
      if (!isSlow) this.#connection?.destroy();
      return false;
    }
  }

  async #reconnect(): Promise<void> {
    const connection = await connect(this.#options);
    try {
      if (!(await tryLock(connection, this.#lockKey))) await this.#noteRefused(connection);
      if (this.#isGone) throw new Error('others take the leases of this life');
      this.#connection = connection;
    } catch (error) {
      connection.destroy();
      throw error;
    }
  }

  /**
   * Most often the server has not noticed yet that the connection before is gone. But the lock may also be somebody else's
   * for good, and then no heartbeat would ever find out that this life is over.
   */
  async #noteRefused(connection: DirectConnection): Promise<never> {
    const rows = await connection.query(
      'select from broker.worker where instance = $1 and gone_at is null',
      [this.instance],
    );
    const isSilent = performance.now() - this.#provenAt > this.#options.silentMs;
    if (rows.length === 0 || isSilent) this.noteGone();
    throw new Error('the lock is held by the connection before, or by somebody else');
  }
}

function instanceName(info: ProcessInfo, lockKey: number): string {
  return `${info.instance}.${lockKey}`;
}

async function connect(options: Required<WorkerSessionOptions>): Promise<DirectConnection> {
  const { directUrl: url, applicationName, answerMs } = options;
  const statementTimeoutMs = Math.ceil(answerMs / 2);
  const connection = await connectDirect({ url, applicationName, statementTimeoutMs });
  try {
    // a heartbeat need not outlive a crash, and must not wait for a slow disk or a standby
    await connection.query('set synchronous_commit = off');
    return connection;
  } catch (error) {
    connection.destroy();
    throw error;
  }
}

/** The sequence may have gone back, as after a fail-over: a number with a row is passed over, whether its lock is held or not. */
async function takeNumber(connection: DirectConnection): Promise<number> {
  for (;;) {
    const [row] = await connection.query<{ lock_key: number; is_known: boolean }>(
      `select n::int as lock_key, exists (select from broker.worker w where w.lock_key = n) as is_known
         from nextval('broker.worker_lock_seq') n`,
    );
    if (row === undefined || row.is_known) continue;
    if (await tryLock(connection, row.lock_key)) return row.lock_key;
  }
}

async function tryLock(connection: DirectConnection, lockKey: number): Promise<boolean> {
  const [row] = await connection.query<{ taken: boolean }>(
    'select pg_try_advisory_lock(broker.worker_lock_class(), $1) as taken',
    [lockKey],
  );
  return row?.taken === true;
}
