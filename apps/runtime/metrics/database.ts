import { Counter, Gauge, Histogram } from 'prom-client';
import { callSeconds } from './buckets.ts';
import type { MetricSource } from './source.ts';

/** Connections of a pool, at this moment. */
export interface PoolState {
  readonly idle: number;
  readonly used: number;
  /** Statements that wait for one. */
  readonly waiting: number;
  readonly max: number;
}

/** What this process has to do with the database. */
export function createDatabaseMetrics(source: MetricSource) {
  const registers = [source.registry];
  const queries = new Counter({
    name: 'broker_database_queries_total',
    help: 'Statements over the pool of this process, each a round trip',
    labelNames: ['result'],
    registers,
  });
  for (const result of ['ok', 'failed'] as const) queries.inc({ result }, 0);
  const errors = new Counter({
    name: 'broker_database_errors_total',
    help: 'Statements that failed, by the class of the SQLSTATE',
    labelNames: ['class'],
    registers,
  });
  const reconnects = new Counter({
    name: 'broker_database_reconnects_total',
    help: 'Times that the direct connection to the database was made again',
    registers,
  });
  const wakeUps = new Counter({
    name: 'broker_wakeups_total',
    help: 'Wake-ups sent by this process and received from the database',
    labelNames: ['kind'],
    registers,
  });
  for (const kind of ['sent', 'received'] as const) wakeUps.inc({ kind }, 0);
  const wakeupLatency = new Histogram({
    name: 'broker_wakeup_latency_seconds',
    help: 'From when a wake-up was asked for in this process to when it heard it itself',
    buckets: callSeconds,
    registers,
  });
  return {
    ...createPoolMetrics(source),
    /** A statement has ended; `errorClass`: how it failed. */
    recordDatabaseQuery: (errorClass: string | undefined): void => {
      queries.inc({ result: errorClass === undefined ? 'ok' : 'failed' });
      if (errorClass !== undefined) errors.inc({ class: errorClass });
    },
    recordDatabaseReconnect(): void {
      reconnects.inc();
    },
    recordWakeUps(kind: 'sent' | 'received', count = 1): void {
      wakeUps.inc({ kind }, count);
    },
    /** A wake-up of this process has come back to it. */
    recordWakeupHeard(latencySeconds: number): void {
      wakeupLatency.observe(latencySeconds);
    },
  };
}

function createPoolMetrics({ registry }: MetricSource) {
  const registers = [registry];
  const reads: (() => PoolState)[] = [];
  const sum = (member: keyof PoolState): number =>
    reads.reduce((total, read) => total + read()[member], 0);
  const states = ['idle', 'used'] as const;
  new Gauge({
    name: 'broker_database_pool_connections',
    help: 'Connections of the pool of this process',
    labelNames: ['state'],
    registers,
    collect() {
      for (const state of states) this.set({ state }, sum(state));
    },
  });
  const gauge = (name: string, help: string, member: keyof PoolState) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(sum(member));
      },
    });
  gauge(
    'broker_database_pool_waiting',
    'Statements that wait for a connection of the pool',
    'waiting',
  );
  gauge(
    'broker_database_pool_connections_max',
    'Connections that the pool may have at most',
    'max',
  );
  return {
    /** Looks at a pool whenever the metrics are asked for; of several in one process, the sum is shown. */
    watchPool(read: () => PoolState): void {
      reads.push(read);
    },
  };
}
