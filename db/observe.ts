import { sql } from 'kysely';
import type { Database } from './client.ts';

/** What the database has to say about itself. Null: the role may not see it, or there is nothing that it could be said of. */
export interface DatabaseObservation {
  readonly oldest_transaction_seconds: number | null;
  readonly xmin_age_seconds: number | null;
  readonly wal_bytes: number | null;
  readonly lock_waits: number | null;
  readonly connections: number | null;
  readonly connections_max: number | null;
  readonly size_bytes: number | null;
  readonly partitions_ahead_seconds: number | null;
  readonly dead_tuples: readonly { readonly table: string; readonly tuples: number }[];
  readonly replicas: readonly {
    readonly replica: string;
    readonly lag_bytes: number | null;
    readonly lag_seconds: number | null;
  }[];
  readonly jobs: readonly {
    readonly kind: string;
    readonly state: string;
    readonly jobs: number;
  }[];
  readonly processes: readonly { readonly service: string; readonly processes: number }[];
}

/** Replicas, and slots of those that are not connected, that are named; those that are the furthest behind. */
const replicasMax = 20;
/** The last jobs that are looked at; those that are not finished are found whichever they are. */
const jobsMax = 1000;

/**
 * Looks at the server's statistics and at small tables of ours, in one statement and never at the queue. What others do is
 * told to members of `pg_read_all_stats` alone: without it the values that would be of our own sessions only are null.
 * https://www.postgresql.org/docs/current/monitoring-stats.html
 */
export async function observeDatabase(db: Database): Promise<DatabaseObservation> {
  const { rows } = await sql<DatabaseObservation>`
    with ${seen}
    select activity.*, locks.*, partitions.*,
        (select w.wal_bytes::float8 from pg_stat_wal w) as wal_bytes,
        current_setting('max_connections')::int as connections_max,
        pg_database_size(current_database())::float8 as size_bytes,
        ${deadTuples} as dead_tuples, ${replicas} as replicas, ${jobs} as jobs, ${processes} as processes
      from activity cross join locks cross join partitions`.execute(db);
  const row = rows[0];
  if (row === undefined) throw new Error('the look at the database returned nothing');
  return row;
}

/**
 * Of `xmin`: sessions with a snapshot or an id of a transaction, and prepared transactions; what a replication slot holds back
 * has no age, and shows in `lag_bytes`. Sessions of background processes and of other databases are nobody's fault here.
 */
const seen = sql`
  now as materialized (
    select clock_timestamp() as at, pg_has_role('pg_read_all_stats', 'usage') as sees_all
  ),
  activity as materialized (
    select case when now.sees_all then greatest(0, extract(epoch from now.at - least(min(a.xact_start), p.oldest))) end::float8
          as oldest_transaction_seconds,
        case when now.sees_all then greatest(0, extract(epoch from now.at - least(
          min(a.xact_start) filter (where a.backend_xmin is not null or a.backend_xid is not null), p.oldest))) end::float8
          as xmin_age_seconds,
        (select count(*) from pg_stat_activity c
          where c.datid is not null and coalesce(c.backend_type, 'client backend') = 'client backend')::int as connections
      from now
      cross join (select min(x.prepared) as oldest from pg_prepared_xacts x where x.database = current_database()) p
      left join pg_stat_activity a
        on a.datname = current_database() and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
     group by now.at, now.sees_all, p.oldest
  ),
  locks as materialized (
    select count(*)::int as lock_waits from pg_locks l
     where not l.granted
       and (l.database is null or l.database = (select d.oid from pg_database d where d.datname = current_database()))
  ),
  partitions as materialized (
    select extract(epoch from min(c.ends_at) - now.at)::float8 as partitions_ahead_seconds
      from now
      left join (
        -- a class without any is behind since now
        select coalesce(max(p.ends_at), clock_timestamp()) as ends_at
          from (select distinct retention_class from broker.topic where state = 'active') t
          left join broker.partition p on p.retention_class = t.retention_class and p.attached
         group by t.retention_class
      ) c on true
     group by now.at
  )`;

const deadTuples = sql`(
  select coalesce(jsonb_agg(jsonb_build_object('table', d.name, 'tuples', d.tuples) order by d.name), '[]')
    from (
      select coalesce(parent.relname, c.relname) as name, sum(pg_stat_get_dead_tuples(c.oid))::float8 as tuples
        from pg_class c
        left join pg_inherits i on i.inhrelid = c.oid
        left join pg_class parent on parent.oid = i.inhparent
       where c.relnamespace = 'broker'::regnamespace and c.relkind = 'r'
       group by 1
    ) d)`;

/** A replica that is not connected keeps WAL by its slot; one that is, is known by the name that it gave itself. Without any, no WAL position is asked for. */
const replicas = sql`(
  select coalesce(jsonb_agg(to_jsonb(r) order by r.lag_bytes desc nulls last), '[]')
    from (
      select x.replica, max(x.lag_bytes)::float8 as lag_bytes, max(x.lag_seconds)::float8 as lag_seconds
        from (
          select coalesce(nullif(s.application_name, ''), host(s.client_addr), 'replica') as replica,
              pg_wal_lsn_diff(pg_current_wal_lsn(), s.replay_lsn) as lag_bytes,
              case when s.replay_lsn is not null then coalesce(extract(epoch from s.replay_lag), 0) end as lag_seconds
            from pg_stat_replication s
          union all
          select s.slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), null
            from pg_replication_slots s where not s.active
        ) x
       where x.lag_bytes is not null
       group by x.replica order by 2 desc limit ${replicasMax}
    ) r)`;

const jobs = sql`(
  select coalesce(jsonb_agg(to_jsonb(j)), '[]')
    from (
      select x.type as kind, x.state, count(*)::int as jobs
        from (
          select u.id, u.type, u.state from broker.job u where u.state in ('waiting', 'running')
          union
          select l.id, l.type, l.state
            from (select * from broker.job order by id desc limit ${jobsMax}) l
           where l.finished_at > clock_timestamp() - interval '1 hour'
        ) x
       group by 1, 2
    ) j)`;

const processes = sql`(
  select coalesce(jsonb_agg(to_jsonb(p)), '[]')
    from (
      select w.service, count(*)::int as processes from broker.worker w
       where w.gone_at is null and w.heartbeat_at > clock_timestamp() - interval '10 seconds'
       group by 1
    ) p)`;
