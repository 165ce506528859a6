import { Counter, type Gauge } from 'prom-client';
import { gaugesOf, type MetricSource } from './source.ts';
import { vanish } from './vanish.ts';

/** What the leader sees of the database, by the names that it has there. Null: it may not see it, or it is not there. */
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

/** Gauges of the leader alone, which nobody else shows; nor does it what it could not see. */
export function createObservationGauges(source: MetricSource) {
  const gauge = gaugesOf(source);
  const single = createSingleGauges(source);
  const walBytes = new Counter({
    name: 'broker_database_wal_bytes_total',
    help: 'Bytes of WAL that the server has written, by its statistics',
    registers: [source.registry],
  });
  const deadTuples = gauge(
    'broker_database_dead_tuples',
    'Dead rows of a table, those of its partitions together',
    ['table'],
  );
  const lagBytes = gauge(
    'broker_database_replication_lag_bytes',
    'WAL that a replica has not replayed, or that is kept for one which is not connected',
    ['replica'],
  );
  const lagSeconds = gauge(
    'broker_database_replication_lag_seconds',
    'How far a connected replica is behind',
    ['replica'],
  );
  const jobs = gauge(
    'broker_jobs',
    'Jobs that are not finished, and those that finished within the last hour',
    ['kind', 'state'],
  );
  const processes = gauge('broker_processes', 'Processes with a heartbeat in the last 10 seconds', [
    'service',
  ]);
  const all = [
    ...Object.values(single),
    walBytes,
    deadTuples,
    lagBytes,
    lagSeconds,
    jobs,
    processes,
  ];

  function set(seen: DatabaseObservation | undefined): void {
    for (const each of all) vanish(each as Gauge);
    if (seen === undefined) return;
    for (const [member, each] of Object.entries(single) as [keyof typeof single, Gauge][]) {
      const value = seen[member];
      if (value !== null) each.set(value);
    }
    if (seen.wal_bytes !== null) walBytes.inc(seen.wal_bytes);
    for (const { table, tuples } of seen.dead_tuples) deadTuples.set({ table }, tuples);
    for (const { replica, lag_bytes: bytes, lag_seconds: seconds } of seen.replicas) {
      if (bytes !== null) lagBytes.set({ replica }, bytes);
      if (seconds !== null) lagSeconds.set({ replica }, seconds);
    }
    for (const { kind, state, jobs: count } of seen.jobs) jobs.set({ kind, state }, count);
    for (const { service, processes: count } of seen.processes) processes.set({ service }, count);
  }

  set(undefined);
  return { set };
}

function createSingleGauges(source: MetricSource) {
  const gauge = gaugesOf(source);
  return {
    oldest_transaction_seconds: gauge(
      'broker_database_oldest_transaction_seconds',
      'Age of the oldest transaction in this database',
    ),
    xmin_age_seconds: gauge(
      'broker_database_xmin_age_seconds',
      'Age of the oldest transaction for whose sake vacuum leaves dead rows',
    ),
    lock_waits: gauge('broker_database_lock_waits', 'Requests for a lock that wait'),
    connections: gauge('broker_database_connections', 'Client connections to the server'),
    connections_max: gauge('broker_database_connections_max', 'max_connections of the server'),
    size_bytes: gauge('broker_database_size_bytes', 'Size of the database on disk'),
    partitions_ahead_seconds: gauge(
      'broker_partitions_ahead_seconds',
      'How far ahead there are partitions, of the retention class with the fewest',
    ),
  };
}
