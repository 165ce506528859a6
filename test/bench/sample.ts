import { readFileSync } from 'node:fs';
import type pg from 'pg';

/** What one round of a measurement gave. */
export interface Sample {
  readonly events: number;
  readonly seconds: number;
  /** Of single steps: a call, or a request, or a receive with its ack; NaN where there are none. */
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly walBytes: number;
  /** Transactions that wrote. */
  readonly transactions: number;
  /** Of this process: 1 is one core. */
  readonly clientCpu: number;
  /** Of the process that is measured, the API's for most; 0 where the system does not tell. */
  readonly processCpu: number;
}

/** What is looked at while it works. */
export interface Measured {
  readonly control: pg.Client;
  /** The process whose time is counted. */
  readonly api: { readonly pid: number };
}

const unmeasuredSeconds = 0.2;

/** Makes one step and says how many events it was; 0 ends the loop. */
export type Step = () => Promise<number>;

/**
 * Runs the steps side by side, each over and over, until the time is over. Counts WAL and transaction ids of the whole
 * server; the statistics views would not do for a few seconds, since a backend adds to them once a second, or 10 s after it
 * fell idle.
 */
export async function takeSample(
  { control, api }: Measured,
  seconds: number,
  steps: readonly Step[],
): Promise<Sample> {
  // the first change of each page after a checkpoint writes the whole page, which says nothing about an event
  await runFor(steps, unmeasuredSeconds);
  const before = await readCounters(control);
  const cpuBefore = process.cpuUsage();
  const processBefore = cpuSecondsOf(api.pid);
  const startedAt = performance.now();
  const { events, latencies } = await runFor(steps, seconds);
  const elapsed = performance.now() - startedAt;
  const cpu = process.cpuUsage(cpuBefore);
  const processSeconds = cpuSecondsOf(api.pid) - processBefore;
  const after = await readCounters(control);
  return {
    events,
    seconds: elapsed / 1000,
    p50Ms: quantile(latencies, 0.5),
    p99Ms: quantile(latencies, 0.99),
    walBytes: after.wal - before.wal,
    transactions: after.transactions - before.transactions,
    clientCpu: (cpu.user + cpu.system) / 1000 / elapsed,
    processCpu: (processSeconds * 1000) / elapsed,
  };
}

/** 0 of none. */
export function quantile(values: readonly number[], share: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length * share)] ?? 0;
}

async function runFor(steps: readonly Step[], seconds: number) {
  const deadline = performance.now() + seconds * 1000;
  const latencies: number[] = [];
  const counts = await Promise.all(steps.map((step) => repeat(step, deadline, latencies)));
  return { events: counts.reduce((total, count) => total + count, 0), latencies };
}

async function repeat(step: Step, deadline: number, latencies: number[]): Promise<number> {
  let events = 0;
  for (let now = performance.now(); now < deadline;) {
    const done = await step();
    if (done === 0) return events;
    events += done;
    const after = performance.now();
    latencies.push(after - now);
    now = after;
  }
  return events;
}

async function readCounters(control: pg.Client): Promise<{ wal: number; transactions: number }> {
  const { rows } = await control.query<{ wal: string; transactions: string }>(
    `select pg_current_wal_insert_lsn() - '0/0'::pg_lsn as wal,
      pg_snapshot_xmax(pg_current_snapshot())::text as transactions`,
  );
  return { wal: Number(rows[0]?.wal), transactions: Number(rows[0]?.transactions) };
}

/** What the process has computed so far, by Linux's clock ticks of 10 ms. */
function cpuSecondsOf(pid: number): number {
  try {
    // behind the name, which may have any characters: state is the third field, utime the 14th
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? [];
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return 0;
  }
}
