import { sql } from 'kysely';
import type { Database } from './client.ts';

export interface BrokerStatus {
  /** By the database's clock. */
  readonly at: string;
  readonly server_version: string;
  /** The last migration. */
  readonly schema_version: string;
  readonly processes: readonly ProcessStatus[];
  readonly leader: LeaderStatus;
  readonly backlog: BacklogTotals;
}

export interface ProcessStatus {
  readonly instance: string;
  readonly service: string;
  readonly version: string;
  readonly host: string;
  readonly pid: number;
  readonly started_at: string;
  readonly heartbeat_age_seconds: number;
  /** As broker.workers says: silent is not heard of for 10 s, gone is a worker whose leases were taken over. */
  readonly state: 'alive' | 'silent' | 'gone';
}

export interface LeaderStatus {
  /** Null when nobody leads. */
  readonly holder: string | null;
  readonly term: string;
  readonly elected_at: string | null;
  readonly heartbeat_age_seconds: number | null;
}

/** Of all subscriptions, by the last sample. */
export interface BacklogTotals {
  readonly waiting_events: number;
  readonly leased_events: number;
  readonly dead_letters: number;
  /** How late the first event is that is due and waits; null when none does. */
  readonly oldest_waiting_seconds: number | null;
  /** Null when nothing was ever sampled. */
  readonly sample_age_seconds: number | null;
}

type Overview = Omit<BrokerStatus, 'processes' | 'leader' | 'backlog'> &
  LeaderStatus &
  BacklogTotals;

/** How the whole broker does: what GET /api/status says. Small tables only, never the queue. */
export async function readStatus(db: Database): Promise<BrokerStatus> {
  const [overview, processes] = await Promise.all([readOverview(db), readProcesses(db)]);
  const { at, server_version, schema_version, holder, term, elected_at, ...rest } = overview;
  const { heartbeat_age_seconds, ...backlog } = rest;
  return {
    at,
    server_version,
    schema_version,
    processes,
    leader: { holder, term, elected_at, heartbeat_age_seconds },
    backlog,
  };
}

async function readOverview(db: Database): Promise<Overview> {
  const { rows } = await sql<Overview>`
    select now.at, current_setting('server_version') as server_version,
        (select max(m.name) from broker.kysely_migration m) as schema_version,
        l.holder, l.term, l.elected_at, extract(epoch from now.at - l.heartbeat_at)::float8 as heartbeat_age_seconds,
        b.waiting_events, b.leased_events, b.dead_letters,
        case when b.oldest_waiting_at is not null
          then greatest(0, extract(epoch from now.at - b.oldest_waiting_at))::float8 end as oldest_waiting_seconds,
        case when s.sampled_at > '-infinity' then extract(epoch from now.at - s.sampled_at)::float8 end as sample_age_seconds
      from (select clock_timestamp() as at offset 0) now
      cross join broker.leader l
      cross join broker.backlog_sampling s
      cross join (
        select coalesce(sum(waiting_events), 0)::float8 as waiting_events, coalesce(sum(leased_events), 0)::float8 as leased_events,
            coalesce(sum(dead_letters), 0)::float8 as dead_letters, min(oldest_waiting_at) as oldest_waiting_at
          from broker.backlog_sample
      ) b`.execute(db);
  const overview = rows[0];
  if (overview === undefined) throw new Error('broker.leader has lost its row');
  return overview;
}

async function readProcesses(db: Database): Promise<ProcessStatus[]> {
  return db
    .selectFrom('worker')
    .select(['instance', 'service', 'version', 'host', 'pid', 'started_at'])
    .select([
      sql<number>`greatest(0, extract(epoch from clock_timestamp() - heartbeat_at))::float8`.as(
        'heartbeat_age_seconds',
      ),
      sql<ProcessStatus['state']>`case when gone_at is not null then 'gone'
        when heartbeat_at < clock_timestamp() - interval '10 seconds' then 'silent' else 'alive' end`.as(
        'state',
      ),
    ])
    .orderBy('service')
    .orderBy('instance')
    .execute();
}

export interface BacklogSampleRow {
  readonly topic: string;
  readonly subscription: string;
  readonly waiting_events: number;
  readonly leased_events: number;
  readonly dead_letters: number;
  /** Of the topic. */
  readonly max_backlog: number;
  /** 0 when nothing waits that is due. */
  readonly oldest_waiting_seconds: number;
}

/** The last sample of each subscription, by name. */
export async function backlogSamples(db: Database): Promise<BacklogSampleRow[]> {
  const { rows } = await sql<BacklogSampleRow>`
    select t.name as topic, s.name as subscription, b.waiting_events::float8, b.leased_events::float8, b.dead_letters::float8,
        t.max_backlog, greatest(0, coalesce(extract(epoch from clock_timestamp() - b.oldest_waiting_at), 0))::float8 as oldest_waiting_seconds
      from broker.backlog_sample b
      join broker.subscription s on s.id = b.subscription_id and s.state <> 'deleted'
      join broker.topic t on t.id = b.topic_id`.execute(db);
  return rows;
}

/** The names of topics and subscriptions by their ids, also of deleted ones: for metrics. */
export async function namesOf(
  db: Database,
  table: 'topic' | 'subscription',
  ids: readonly number[],
): Promise<Map<number, string>> {
  if (ids.length === 0) return new Map();
  const rows = await db
    .selectFrom(table)
    .select(['id', 'name'])
    .where('id', 'in', [...ids])
    .execute();
  return new Map(rows.map((row) => [row.id, row.name]));
}
