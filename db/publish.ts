import { sql } from 'kysely';
import type { Database } from './client.ts';
import { faultOf } from './errors.ts';
import { ensurePartitions } from './partitions.ts';

/** One event on its way in. `data` is JSON text and is stored as it is; `bytes` is what it counts for. */
export interface NewEvent {
  readonly type: string;
  readonly id?: string;
  readonly source?: string;
  readonly subject?: string;
  readonly time?: string;
  readonly datacontenttype?: string;
  readonly dataschema?: string;
  readonly ordering_key?: string;
  readonly traceparent?: string;
  readonly tracestate?: string;
  /** JSON text of an object of attribute values. */
  readonly extensions?: string;
  readonly delay_ms?: number;
  /** RFC 3339. */
  readonly available_at?: string;
  readonly data?: string;
  readonly bytes: number;
  /** 16-byte hash of (source, id), when that makes the event idempotent, and of what must not differ under it. */
  readonly key?: Buffer;
  readonly fingerprint?: Buffer;
}

/** One HTTP request's events; they are stored all or none, but for duplicates and conflicts of single events. */
export interface PublishRequest {
  readonly events: readonly NewEvent[];
  /** 16-byte hash of the Idempotency-Key and of the body. */
  readonly key?: Buffer;
  readonly fingerprint?: Buffer;
}

export type PublishOutcome =
  | 'published'
  | 'duplicate'
  | 'conflict'
  | 'request_conflict'
  | 'too_far';

export type PublishBatchResult =
  | { readonly status: 'topic_not_found' }
  | {
      readonly status: 'published';
      /** Per request and event, as they went in. */
      readonly results: readonly (readonly {
        readonly id: string;
        readonly outcome: PublishOutcome;
      }[])[];
      /** Subscriptions that have something to claim now. */
      readonly woken: readonly number[];
    };

/** As many events as one id has ordinals for. */
export const publishEventsMax = 1000;

/**
 * Stores the events of several requests and the queue entries of every matching subscription: one call, one commit.
 * Throws what `faultOf` sorts; `lock_timeout` means that a key is being published by somebody else right now.
 */
export async function publishBatch(
  db: Database,
  topicId: number,
  requests: readonly PublishRequest[],
): Promise<PublishBatchResult> {
  const met = new Set<number | 'conflict' | undefined>();
  for (;;) {
    try {
      return await callPublishBatch(db, topicId, requests);
    } catch (error) {
      const fault = faultOf(error);
      // `missing_partition`: no reaper has been there for a while, or this is the class's first event. Delays may put the
      // events of one batch into several classes, each of which is named by an error of its own.
      // `conflict`: the clock was set back and gave an id a second time; the next one is free.
      if (fault !== 'missing_partition' && fault !== 'conflict') throw error;
      const cause = fault === 'conflict' ? fault : retentionClassOf(error);
      if (met.has(cause)) throw error;
      met.add(cause);
      if (fault === 'missing_partition') await ensurePartitions(db, retentionClassOf(error));
    }
  }
}

interface PublishBatchRow {
  status: 'published' | 'topic_not_found';
  ids: string[] | null;
  outcomes: PublishOutcome[] | null;
  woken: number[] | null;
}

async function callPublishBatch(
  db: Database,
  topicId: number,
  requests: readonly PublishRequest[],
): Promise<PublishBatchResult> {
  const events = requests.flatMap((request) => request.events);
  const column = <T>(read: (event: NewEvent) => T | undefined): (T | null)[] | null =>
    events.some((event) => read(event) !== undefined)
      ? events.map((event) => read(event) ?? null)
      : null;
  const keyed = requests.some((request) => request.key !== undefined);
  const { rows } = await sql<PublishBatchRow>`select * from broker.publish_batch(${topicId},
    ${requests.flatMap((request, index) => request.events.map(() => index + 1))}::int[],
    ${events.map((event) => event.type)}::text[], ${column((event) => event.data)}::json[],
    ${events.map((event) => event.bytes)}::int[],
    ${column((event) => event.id)}::text[], ${column((event) => event.source)}::text[],
    ${column((event) => event.subject)}::text[], ${column((event) => event.time)}::text[],
    ${column((event) => event.datacontenttype)}::text[], ${column((event) => event.dataschema)}::text[],
    ${column((event) => event.ordering_key)}::text[], ${column((event) => event.extensions)}::json[],
    ${column((event) => event.traceparent)}::text[], ${column((event) => event.tracestate)}::text[],
    ${column((event) => event.delay_ms)}::bigint[], ${column((event) => event.available_at)}::timestamptz[],
    ${column((event) => event.key)}::bytea[], ${column((event) => event.fingerprint)}::bytea[],
    ${keyed ? requests.map((request) => request.key ?? null) : null}::bytea[],
    ${keyed ? requests.map((request) => request.fingerprint ?? null) : null}::bytea[])`.execute(db);
  const row = rows[0];
  if (row === undefined || row.status === 'topic_not_found') return { status: 'topic_not_found' };
  return { status: 'published', results: resultsByRequest(requests, row), woken: row.woken ?? [] };
}

function resultsByRequest(requests: readonly PublishRequest[], row: PublishBatchRow) {
  let next = 0;
  return requests.map((request) =>
    request.events.map(() => {
      const index = next++;
      return { id: row.ids?.[index] ?? '', outcome: row.outcomes?.[index] ?? 'published' };
    }),
  );
}

/** PostgreSQL names the row that found no partition: `Partition key of the failing row contains (retention_class, id) = (168, 1…)`. */
function retentionClassOf(error: unknown): number | undefined {
  const detail = error instanceof Error && 'detail' in error ? String(error.detail) : '';
  const match = /= \((\d+),/.exec(detail);
  return match === null ? undefined : Number(match[1]);
}
