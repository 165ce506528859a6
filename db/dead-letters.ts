import { type Selectable, sql } from 'kysely';
import type { Database } from './client.ts';
import type { DeadLetter } from './schema.ts';

/** A dead letter with its copy of the event. `data` and `extensions` are JSON text. */
export type DeadLetterRow = Omit<Selectable<DeadLetter>, 'topic_id' | 'subscription_id'>;

export interface DeadLetterPage {
  readonly limit: number;
  /** The last id of the page before. */
  readonly after?: string | undefined;
  /** Of data, in all (8 MiB). */
  readonly bytesMax?: number;
}

/** Oldest first; fewer than `limit` where their data is large, but at least one. `hasMore`: something comes behind them. */
export async function listDeadLetters(
  db: Database,
  topicId: number,
  subscriptionId: number,
  { limit, after, bytesMax = 8_388_608 }: DeadLetterPage,
): Promise<{ readonly letters: DeadLetterRow[]; readonly hasMore: boolean }> {
  const sizes = await db
    .selectFrom('dead_letter')
    .select(['id', sql<number>`octet_length(coalesce(data::text, ''))`.as('bytes')])
    .where('topic_id', '=', topicId)
    .where('subscription_id', '=', subscriptionId)
    .$if(after !== undefined, (query) => query.where('id', '>', after ?? '0'))
    .orderBy('id')
    .limit(limit + 1)
    .execute();
  const ids: string[] = [];
  let bytes = 0;
  for (const each of sizes) {
    bytes += each.bytes;
    if (ids.length === limit || (ids.length > 0 && bytes > bytesMax)) break;
    ids.push(each.id);
  }
  const letters = await selectDeadLetters(db, topicId, subscriptionId)
    .where(sql<boolean>`id = any (${ids}::bigint[])`)
    .orderBy('id')
    .execute();
  return { letters, hasMore: ids.length < sizes.length };
}

/** One of a subscription's dead letters, by its id. */
export async function findDeadLetter(
  db: Database,
  topicId: number,
  subscriptionId: number,
  id: string,
): Promise<DeadLetterRow | undefined> {
  return selectDeadLetters(db, topicId, subscriptionId).where('id', '=', id).executeTakeFirst();
}

function selectDeadLetters(db: Database, topicId: number, subscriptionId: number) {
  return db
    .selectFrom('dead_letter')
    .select(['id', 'event_id', 'origin_id', 'died_at', 'published_at', 'attempts', 'reason'])
    .select([
      'last_error',
      'last_status',
      'type',
      'ce_id',
      'source',
      'subject',
      'time',
      'datacontenttype',
    ])
    .select(['dataschema', 'ordering_key', 'extensions', 'traceparent', 'tracestate'])
    .select(['data', 'data_binary'])
    .where('topic_id', '=', topicId)
    .where('subscription_id', '=', subscriptionId);
}

/** Deletes one dead letter. */
export async function deleteDeadLetter(
  db: Database,
  topicId: number,
  subscriptionId: number,
  id: string,
): Promise<{ readonly status: 'deleted' | 'not_found' }> {
  const { numDeletedRows } = await db
    .deleteFrom('dead_letter')
    .where('topic_id', '=', topicId)
    .where('subscription_id', '=', subscriptionId)
    .where('id', '=', id)
    .executeTakeFirst();
  return { status: numDeletedRows === 0n ? 'not_found' : 'deleted' };
}

/**
 * Deletes the dead letters that a subscription has when the call begins, a chunk a statement; returns how many. What is
 * being redriven at the moment is passed by.
 */
export async function purgeDeadLetters(
  db: Database,
  topicId: number,
  subscriptionId: number,
  chunk = 2000,
): Promise<number> {
  const { rows } = await sql<{ last_id: string | null }>`
    select max(id) as last_id from broker.dead_letter
     where topic_id = ${topicId} and subscription_id = ${subscriptionId}`.execute(db);
  const lastId = rows[0]?.last_id ?? null;
  if (lastId === null) return 0;
  let purged = 0;
  for (;;) {
    const deleted = await purgeChunk(db, { topicId, subscriptionId, lastId, chunk });
    purged += deleted;
    if (deleted < chunk) return purged;
  }
}

async function purgeChunk(
  db: Database,
  of: { topicId: number; subscriptionId: number; lastId: string; chunk: number },
): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from broker.dead_letter d
     where d.topic_id = ${of.topicId} and d.subscription_id = ${of.subscriptionId}
       and d.id = any (array(
         select l.id from broker.dead_letter l
          where l.topic_id = ${of.topicId} and l.subscription_id = ${of.subscriptionId} and l.id <= ${of.lastId}::bigint
          order by l.id limit ${of.chunk} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
