import type pg from 'pg';
import { eventText } from './events.ts';

/** Of PostgreSQL's connection in `pg`, what a COPY needs and its types leave out. */
interface CopyConnection {
  query(text: string): void;
  sendCopyFromChunk(chunk: Buffer): void;
  endCopyFrom(): void;
}

/** One `COPY … FROM STDIN`, for `client.query`. */
class CopyFrom {
  readonly #statement: string;
  readonly #rows: Buffer;
  readonly #done = Promise.withResolvers<void>();

  constructor(statement: string, rows: Buffer) {
    this.#statement = statement;
    this.#rows = rows;
  }

  get done(): Promise<void> {
    return this.#done.promise;
  }

  submit(connection: unknown): void {
    (connection as CopyConnection).query(this.#statement);
  }

  handleCopyInResponse(connection: CopyConnection): void {
    connection.sendCopyFromChunk(this.#rows);
    connection.endCopyFrom();
  }

  handleCommandComplete(): void {}

  handleReadyForQuery(): void {
    this.#done.resolve();
  }

  handleError(error: Error): void {
    this.#done.reject(error);
  }
}

/** A table with the columns and the primary key of `broker.event`, and nothing else. */
export const copyTable = `drop schema if exists bench cascade; create schema bench;
  create table bench.event (like broker.event including defaults including constraints including indexes)
  with (autovacuum_enabled = false)`;

const statement =
  'copy bench.event (id, published_at, expires_at, topic_id, retention_class, type, source, data) from stdin';

let nextId = 1n;

/** Rows as a publish writes them, in COPY's text format; ids go on where the last call ended. */
export function copyRows(count: number): Buffer {
  let rows = '';
  for (let i = 0; i < count; i += 1) {
    rows += `${nextId++}\t2026-01-01 00:00:00.123456+00\t2026-01-08 00:00:00.123456+00\t1\t168\torder.created\t/bench\t${eventText(i)}\n`;
  }
  return Buffer.from(rows);
}

/** Copies rows in a transaction of their own. */
export async function copyInto(client: pg.Client, rows: Buffer): Promise<void> {
  const copy = new CopyFrom(statement, rows);
  client.query(copy);
  await copy.done;
}
