import { setTimeout as delay } from 'node:timers/promises';
import { connectDirect, type DirectConnection } from './direct-connection.ts';

export interface CandidateOptions {
  readonly directUrl: string;
  readonly applicationName: string;
  /** The instance that `broker.leader` shows. */
  readonly holder: string;
  readonly statementTimeoutMs: number;
  /** How often a leader proves that it lives (500). */
  readonly heartbeatMs?: number;
  /** The age of a heartbeat from which on followers remove its leader (3000). */
  readonly staleAfterMs?: number;
}

/** The right to run duties in one term. */
export interface Leadership {
  /** What every duty shows to the database. */
  readonly term: string;
  /** Aborted, with the reason, as soon as the right is or may be another's. */
  readonly lost: AbortSignal;
  /** False also before any timer has run in a process that was stopped and goes on. To be asked before each duty. */
  isLeading(): boolean;
  /** Gives the right up at once, because a duty was told that the term is over. */
  stepDown(reason: Error): void;
  /** Gives the right up such that another can take it at once. */
  resign(): Promise<void>;
}

export type Look =
  | { readonly status: 'leads'; readonly leadership: Leadership }
  | {
      readonly status: 'follows';
      readonly holder: string | null;
      readonly term: string;
      /** When it is worth to look again, at most 1000. */
      readonly lookAgainMs: number;
    };

// the key of the session advisory lock; migrate has the one before
const lockKey = 7_362_002;

const lookMs = 1000;
const afterRemovalMs = 50;
const resignMs = 1000;

/** One who leads when nobody else does. */
export class Candidate implements AsyncDisposable {
  readonly #options: Required<CandidateOptions>;
  #connection: DirectConnection | undefined;
  #isClosed = false;

  constructor(options: CandidateOptions) {
    this.#options = { heartbeatMs: 500, staleAfterMs: 3000, ...options };
  }

  /**
   * Takes the leadership if it is free, else removes a leader whose heartbeat is too old. Throws when the database is away;
   * the next call connects again.
   */
  async look(): Promise<Look> {
    if (this.#isClosed) throw new Error('this candidate is closed');
    if (this.#connection?.lost.aborted === true) this.#connection = undefined;
    const connection = (this.#connection ??= await this.#connect());
    try {
      const [lock] = await connection.query<{ taken: boolean }>(
        'select pg_try_advisory_lock($1) as taken',
        [lockKey],
      );
      if (lock?.taken !== true) return await this.#follow(connection);
      const leadership = await this.#elect(connection);
      // from here on it belongs to the leadership
      this.#connection = undefined;
      return { status: 'leads', leadership };
    } catch (error) {
      // with the connection goes the lock, whatever it was that failed
      connection.destroy();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    await this.#connection?.end();
  }

  async #connect(): Promise<DirectConnection> {
    const { directUrl: url, applicationName, statementTimeoutMs } = this.#options;
    const connection = await connectDirect({ url, applicationName, statementTimeoutMs });
    if (!this.#isClosed) return connection;
    connection.destroy();
    throw new Error('this candidate is closed');
  }

  async #elect(connection: DirectConnection): Promise<Leadership> {
    await connection.query('begin');
    // Waits for the duties of the term before, and only then a clock is read.
    await connection.query('select from broker.leader for update');
    const provenAt = performance.now();
    const [row] = await connection.query<{ term: string }>(
      `update broker.leader set term = term + 1, holder = $1, backend_pid = pg_backend_pid(),
         elected_at = clock_timestamp(), heartbeat_at = clock_timestamp() returning term`,
      [this.#options.holder],
    );
    await connection.query('commit');
    if (row === undefined) throw new Error('broker.leader has lost its row');
    return new SessionLeadership({ ...this.#options, connection, term: row.term, provenAt });
  }

  async #follow(connection: DirectConnection): Promise<Look> {
    const { staleAfterMs } = this.#options;
    const [leader] = await connection.query<{
      term: string;
      holder: string | null;
      age_ms: number;
    }>(
      `select term, holder, coalesce(extract(epoch from clock_timestamp() - heartbeat_at) * 1000, 1e9)::float8 as age_ms
         from broker.leader`,
    );
    const { term = '0', holder = null, age_ms: ageMs = 0 } = leader ?? {};
    const staleInMs = staleAfterMs - ageMs;
    if (staleInMs <= 0) await removeStaleLeader(connection, staleAfterMs);
    const lookAgainMs = staleInMs <= 0 ? afterRemovalMs : Math.min(lookMs, staleInMs + 10);
    return { status: 'follows', holder, term, lookAgainMs };
  }
}

/**
 * Ends the session that holds the lock, in one statement with the look at the heartbeat. One that has the lock and is not
 * yet the leader on record is being elected, and may wait there for a duty: it is removed only when it does nothing.
 */
async function removeStaleLeader(
  connection: DirectConnection,
  staleAfterMs: number,
): Promise<void> {
  await connection.query(
    `select pg_terminate_backend(k.pid)
       from broker.leader l
       join pg_locks k on k.locktype = 'advisory' and k.classid = 0 and k.objid = $1::bigint::oid and k.objsubid = 1
        and k.granted and k.database = (select d.oid from pg_database d where d.datname = current_database())
       join pg_stat_activity a on a.pid = k.pid
      where coalesce(l.heartbeat_at, '-infinity') < clock_timestamp() - $2 * interval '1 millisecond'
        and (k.pid = l.backend_pid
          or a.state <> 'active' and a.state_change < clock_timestamp() - $2 * interval '1 millisecond')`,
    [lockKey, staleAfterMs],
  );
}

interface SessionLeadershipOptions extends Required<CandidateOptions> {
  readonly connection: DirectConnection;
  readonly term: string;
  readonly provenAt: number;
}

class SessionLeadership implements Leadership {
  readonly term: string;
  readonly #connection: DirectConnection;
  readonly #options: SessionLeadershipOptions;
  readonly #losing = new AbortController();
  readonly #trustMs: number;
  readonly #beating: Promise<void>;
  #provenAt: number;
  #deadline: NodeJS.Timeout | undefined;

  constructor(options: SessionLeadershipOptions) {
    this.#options = options;
    this.term = options.term;
    this.#connection = options.connection;
    // Over before a follower may act on it: its clock begins when the heartbeat arrives, ours when it leaves.
    this.#trustMs = options.staleAfterMs - options.heartbeatMs;
    this.#provenAt = options.provenAt;
    this.#connection.lost.addEventListener('abort', this.#onConnectionLost, { once: true });
    this.#beating = this.#beat();
    if (this.#connection.lost.aborted) this.#onConnectionLost();
  }

  get lost(): AbortSignal {
    return this.#losing.signal;
  }

  isLeading(): boolean {
    if (performance.now() - this.#provenAt >= this.#trustMs) this.#onDeadline();
    return !this.#losing.signal.aborted;
  }

  stepDown(reason: Error): void {
    if (this.#losing.signal.aborted) return;
    clearTimeout(this.#deadline);
    this.#losing.abort(reason);
    this.#connection.lost.removeEventListener('abort', this.#onConnectionLost);
    this.#connection.destroy();
  }

  async resign(): Promise<void> {
    if (this.#losing.signal.aborted) return;
    clearTimeout(this.#deadline);
    this.#connection.lost.removeEventListener('abort', this.#onConnectionLost);
    this.#losing.abort(new Error('resigned'));
    const cut = setTimeout(() => this.#connection.destroy(), resignMs);
    await this.#beating;
    const { term } = this;
    await this.#connection
      .query('update broker.leader set holder = null, backend_pid = null where term = $1', [term])
      .catch(() => undefined);
    // the lock goes with the session
    await this.#connection.end();
    clearTimeout(cut);
  }

  async #beat(): Promise<void> {
    const { signal } = this.#losing;
    this.#armDeadline();
    while (!signal.aborted) {
      await delay(this.#options.heartbeatMs, undefined, { signal }).catch(() => undefined);
      if (!this.isLeading()) return;
      const sentAt = performance.now();
      try {
        const rows = await this.#connection.query(
          'update broker.leader set heartbeat_at = clock_timestamp() where term = $1 returning term',
          [this.term],
        );
        if (rows.length === 0) throw new Error('another leads');
      } catch (cause) {
        this.stepDown(new Error('the heartbeat failed', { cause }));
        return;
      }
      this.#provenAt = sentAt;
      this.#armDeadline();
    }
  }

  #armDeadline(): void {
    clearTimeout(this.#deadline);
    if (this.#losing.signal.aborted) return;
    const leftMs = this.#provenAt + this.#trustMs - performance.now();
    this.#deadline = setTimeout(() => this.#onDeadline(), Math.max(0, leftMs));
  }

  #onDeadline(): void {
    const { heartbeatMs, staleAfterMs } = this.#options;
    this.stepDown(
      new Error(`no heartbeat came through for ${staleAfterMs - heartbeatMs} ms, another may lead`),
    );
  }

  readonly #onConnectionLost = (): void => {
    this.stepDown(new Error('the connection that holds the lock was lost'));
  };
}
