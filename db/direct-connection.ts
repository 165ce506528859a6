import { Socket } from 'node:net';
import pg from 'pg';
import { connectionConfig } from './client.ts';
import { DatabaseUnavailable, OutcomeUnknown } from './errors.ts';

export interface DirectConnectionOptions {
  /** No transaction pooler between: LISTEN and session locks belong to one server process. */
  readonly url: string;
  readonly applicationName: string;
  /** The server gives a statement up after so long, and we the connection after twice that. */
  readonly statementTimeoutMs: number;
}

/** One connection outside the pool, for what belongs to a session. Never repaired: its owner makes the next one. */
export interface DirectConnection {
  query<Row extends pg.QueryResultRow>(text: string, values?: readonly unknown[]): Promise<Row[]>;
  /** Aborted when the connection is gone, whoever ended it. */
  readonly lost: AbortSignal;
  onNotification(listener: (channel: string, payload: string) => void): void;
  /** Says goodbye and waits for it, but not long. */
  end(): Promise<void>;
  /** Cuts the connection without a word: a peer that fell silent would not hear it. */
  destroy(): void;
}

const goodbyeMs = 1000;

// A server that cannot reach us any more has to find out soon: it keeps our session locks until then.
const serverKeepalives =
  '-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3 -c tcp_user_timeout=4000';

export async function connectDirect(options: DirectConnectionOptions): Promise<DirectConnection> {
  const socket = new Socket();
  const config = connectionConfig(options);
  const client = new pg.Client({
    ...config,
    options: `${config.options ?? ''} ${serverKeepalives}`,
    stream: () => socket,
  });
  const lost = new AbortController();
  const lose = (): void => {
    lost.abort();
    socket.destroy();
  };
  client.once('end', lose);
  client.on('error', lose);
  try {
    await client.connect();
  } catch (cause) {
    lose();
    throw new DatabaseUnavailable('no direct connection to the database', { cause });
  }
  return {
    lost: lost.signal,
    async query<Row extends pg.QueryResultRow>(text: string, values: readonly unknown[] = []) {
      try {
        const { rows } = await client.query<Row>(text, [...values]);
        return rows;
      } catch (error) {
        if (error instanceof pg.DatabaseError) throw error;
        throw new OutcomeUnknown('the direct connection to the database broke', { cause: error });
      }
    },
    onNotification(listener) {
      client.on('notification', ({ channel, payload }) => listener(channel, payload ?? ''));
    },
    async end() {
      const cut = setTimeout(lose, goodbyeMs);
      await client.end().catch(() => undefined);
      clearTimeout(cut);
      lose();
    },
    destroy: lose,
  };
}
