import { setTimeout as delay } from 'node:timers/promises';
import { connectDirect, type DirectConnection } from './direct-connection.ts';
import type { ProcessInfo } from './processes.ts';

export interface WorkerSessionOptions {
  readonly directUrl: string;
  readonly applicationName: string;
  readonly statementTimeoutMs: number;
  /** The name of the process; a number is added, so that no two lives of one name are taken for each other. */
  readonly info: ProcessInfo;
  /** How often it proves that it lives (1000). */
  readonly heartbeatMs?: number;
  /** How long it trusts its last proof (8000): less than the 10 s after which others take its leases. */
  readonly trustMs?: number;
  /** It is trusted again, or it is gone. */
  readonly onChange?: () => void;
}

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
    const filled = { heartbeatMs: 1000, trustMs: 8000, onChange: () => undefined, ...options };
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
          ? heartbeatMs
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
    } catch {
      this.#connection?.destroy();
      return false;
    }
  }

  async #reconnect(): Promise<void> {
    const connection = await connect(this.#options);
    this.#connection = connection;
    if (await tryLock(connection, this.#lockKey)) return;
    // the server has not noticed yet that the connection before is gone
    throw new Error('the lock is still held by the connection before');
  }
}

function instanceName(info: ProcessInfo, lockKey: number): string {
  return `${info.instance}.${lockKey}`;
}

function connect(options: WorkerSessionOptions): Promise<DirectConnection> {
  const { directUrl: url, applicationName, statementTimeoutMs } = options;
  return connectDirect({ url, applicationName, statementTimeoutMs });
}

async function takeNumber(connection: DirectConnection): Promise<number> {
  for (;;) {
    const [row] = await connection.query<{ lock_key: number }>(
      `select nextval('broker.worker_lock_seq')::int as lock_key`,
    );
    if (row !== undefined && (await tryLock(connection, row.lock_key))) return row.lock_key;
  }
}

async function tryLock(connection: DirectConnection, lockKey: number): Promise<boolean> {
  const [row] = await connection.query<{ taken: boolean }>(
    'select pg_try_advisory_lock(broker.worker_lock_class(), $1) as taken',
    [lockKey],
  );
  return row?.taken === true;
}
