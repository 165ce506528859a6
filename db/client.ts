import { Kysely, PostgresDialect } from 'kysely';
import pg from 'pg';
import {
  DatabaseUnavailable,
  OutcomeUnknown,
  breaksConnection,
  type DatabaseErrorClass,
  errorClassOf,
} from './errors.ts';
import type { DB } from './schema.ts';

/** What every verb takes: the typed query builder over a small pool. */
export type Database = Kysely<DB>;

export interface DatabaseOptions {
  readonly url: string;
  /** Shown in pg_stat_activity, e.g. `broker-api-host-17`. */
  readonly applicationName: string;
  /** Connections at most. Batching does the work of a pool, so 2 to 4 are enough. */
  readonly poolMax: number;
  readonly statementTimeoutMs: number;
  /** A statement over the pool has ended, or was never sent; `errorClass`: how it failed. */
  readonly onQuery?: (errorClass: DatabaseErrorClass | undefined) => void;
}

/** Connections of a pool, at this moment. */
export interface PoolState {
  readonly idle: number;
  readonly used: number;
  /** Statements that wait for one. */
  readonly waiting: number;
  readonly max: number;
}

export interface DatabaseHandle extends AsyncDisposable {
  readonly db: Database;
  poolState(): PoolState;
  /** Closes the pool; statements under way end first. Safe to call twice. */
  close(): Promise<void>;
}

const oid = { int8: 20, json: 114, timestamptz: 1184 } as const;

/** int8 as text, json as the very text that is stored, timestamptz as RFC 3339 in UTC with microseconds. */
const parsers: pg.CustomTypesConfig = {
  getTypeParser(id, format) {
    switch (id as number) {
      case oid.int8:
      case oid.json:
        return (value: string) => value;
      case oid.timestamptz:
        return (value: string) => value.replace(' ', 'T').replace(/\+00$/, 'Z');
      default:
        return pg.types.getTypeParser(id, format);
    }
  },
};

/** The settings that every connection of ours has, pooled or direct. */
export function connectionConfig(
  options: Pick<DatabaseOptions, 'url' | 'applicationName' | 'statementTimeoutMs'>,
): pg.ClientConfig {
  return {
    connectionString: options.url,
    application_name: options.applicationName,
    statement_timeout: options.statementTimeoutMs,
    // a connection that fell silent is given up by us: the server's own timeout cannot reach us over it
    query_timeout: options.statementTimeoutMs * 2,
    idle_in_transaction_session_timeout: options.statementTimeoutMs * 2,
    connectionTimeoutMillis: 5000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 1000,
    options: '-c timezone=UTC -c datestyle=ISO',
    types: parsers,
  };
}

/** Opens a pool; connects with the first statement. A lost connection is replaced, never fatal. */
export function createDatabase(options: DatabaseOptions): DatabaseHandle {
  const pool = new pg.Pool({ ...connectionConfig(options), max: options.poolMax });
  // an idle connection that breaks is dropped by the pool; without a listener it would end the process
  pool.on('error', () => undefined);
  // so would one that breaks while it is in use: the pool listens to idle ones only, and the statement gets its error anyway
  pool.on('connect', (client) => client.on('error', () => undefined));
  const root = new Kysely<DB>({
    dialect: new PostgresDialect({ pool: guarded(pool, options.onQuery) }),
  });
  const db = root.withSchema('broker');
  let closing: Promise<void> | undefined;
  const close = (): Promise<void> => (closing ??= root.destroy());
  const poolState = (): PoolState => ({
    idle: pool.idleCount,
    used: pool.totalCount - pool.idleCount,
    waiting: pool.waitingCount,
    max: options.poolMax,
  });
  return { db, poolState, close, [Symbol.asyncDispose]: close };
}

type DialectPool = Exclude<ConstructorParameters<typeof PostgresDialect>[0]['pool'], Function>;

/**
 * A pool that says whether a failed statement had been sent, and that never reuses a connection which broke or was given
 * up in the middle of an answer.
 */
function guarded(pool: pg.Pool, onQuery: DatabaseOptions['onQuery']): DialectPool {
  const connect = async () => {
    const client = await pool.connect().catch((cause: unknown) => {
      onQuery?.(errorClassOf(cause));
      throw cause instanceof pg.DatabaseError && cause.code !== '57P03' && cause.code !== '53300'
        ? cause
        : new DatabaseUnavailable('no connection to the database', { cause });
    });
    let broken: Error | undefined;
    const query = async (...args: unknown[]): Promise<unknown> => {
      try {
        const result = await (client.query as (...queryArgs: unknown[]) => Promise<unknown>).apply(
          client,
          args,
        );
        onQuery?.(undefined);
        return result;
      } catch (error) {
        onQuery?.(errorClassOf(error));
        if (!breaksConnection(error)) throw error;
        broken = error as Error;
        throw error instanceof pg.DatabaseError
          ? error
          : new OutcomeUnknown('the connection to the database broke', { cause: error });
      }
    };
    return { query, release: () => client.release(broken) };
  };
  return { connect, end: () => pool.end(), options: pool.options } as unknown as DialectPool;
}
