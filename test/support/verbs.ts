import { sql } from 'kysely';
import { claim, type ClaimedEvent } from '#db/claim.ts';
import { createDatabase, type Database, type DatabaseHandle } from '#db/client.ts';
import { settle, type SettleResult, type Settlement } from '#db/settle.ts';
import { cloneDatabase } from './database.ts';

/** A database of its own for a test file, with our own client on it; disposing closes and drops it. */
export interface VerbDatabase extends AsyncDisposable {
  readonly db: Database;
  readonly url: string;
  /** Another pool on the same database: what another replica would be. */
  another(poolMax?: number): DatabaseHandle;
}

export async function openVerbDatabase(poolMax = 4): Promise<VerbDatabase> {
  const database = await cloneDatabase();
  const handles: DatabaseHandle[] = [];
  const open = (max: number): DatabaseHandle => {
    const handle = createDatabase({
      url: database.url,
      applicationName: 'broker-test',
      poolMax: max,
      statementTimeoutMs: 5000,
    });
    handles.push(handle);
    return handle;
  };
  return {
    db: open(poolMax).db,
    url: database.url,
    another: (max = 1) => open(max),
    async [Symbol.asyncDispose]() {
      await Promise.all(handles.map((handle) => handle.close()));
      await database[Symbol.asyncDispose]();
    },
  };
}

/** Claims up to `events` of one subscription, from the head. */
export async function claimSome(
  db: Database,
  topicId: number,
  subscriptionId: number,
  events: number,
  options: {
    readonly leaseMs?: number;
    readonly mark?: string;
    readonly bytes?: number;
    readonly leasedBy?: string;
  } = {},
): Promise<ClaimedEvent[]> {
  const room = {
    subscription_id: subscriptionId,
    events,
    bytes: options.bytes ?? 8 << 20,
    mark: options.mark,
  };
  const { leaseMs = 30_000, leasedBy } = options;
  return claim(db, topicId, [room], { leaseMs, ...(leasedBy !== undefined && { leasedBy }) });
}

/** Settles claimed events all in one way. */
export async function settleAll(
  db: Database,
  topicId: number,
  events: readonly ClaimedEvent[],
  settlement: Omit<Settlement, 'lease'>,
): Promise<SettleResult[]> {
  const first = events[0];
  if (first === undefined) return [];
  const settlements = events.map((event) => ({
    lease: { ...event, topic_id: topicId },
    ...settlement,
  }));
  return settle(db, topicId, first.subscription_id, settlements);
}

export interface QueueRow {
  id: string;
  publish_id: string;
  ordinals: number[];
  event_count: number;
  bytes: number;
  attempt: number;
  generation: number;
  isolated: boolean;
  available_at: string;
  lease_expires_at: string | null;
  /** Seconds until it is due, by the database's clock. */
  due_in: number;
}

/** The queue entries of a subscription, in the order of their ids. */
export async function queueRows(db: Database, subscriptionId: number): Promise<QueueRow[]> {
  const { rows } =
    await sql<QueueRow>`select id, publish_id, ordinals, event_count, bytes, attempt, generation, isolated,
      available_at, lease_expires_at, extract(epoch from available_at - clock_timestamp())::float8 as due_in
    from broker.queue where subscription_id = ${subscriptionId} order by id`.execute(db);
  return rows;
}

/** Makes the leases of a subscription run out now. */
export async function expireLeases(db: Database, subscriptionId: number): Promise<void> {
  await sql`update broker.queue set lease_expires_at = clock_timestamp()
    where subscription_id = ${subscriptionId} and lease_expires_at is not null`.execute(db);
}

/** Makes what waits for a later time due now. */
export async function makeDue(db: Database, subscriptionId: number): Promise<void> {
  await sql`update broker.queue set available_at = clock_timestamp()
    where subscription_id = ${subscriptionId} and lease_expires_at is null`.execute(db);
}

export async function deadLetters(
  db: Database,
  subscriptionId: number,
): Promise<
  {
    event_id: string;
    reason: string;
    attempts: number;
    last_error: string | null;
    data: string | null;
  }[]
> {
  return db
    .selectFrom('dead_letter')
    .select(['event_id', 'reason', 'attempts', 'last_error', 'data'])
    .where('subscription_id', '=', subscriptionId)
    .orderBy('id')
    .execute();
}
