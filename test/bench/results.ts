import { mkdir, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import type { Measurement } from './measurements.ts';
import type { Sample } from './sample.ts';

/** The median of the rounds, per event where that says more. */
export interface Result {
  readonly name: string;
  readonly connections: number;
  readonly batch: number;
  readonly eventsPerSecond: number;
  readonly roundsEventsPerSecond: readonly number[];
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly walBytesPerEvent: number;
  readonly transactionsPerEvent: number;
  readonly clientCpu: number;
  /** Of the process that is measured: cores, and seconds per 1,000 events. */
  readonly processCpu: number;
  readonly processSecondsPerThousand: number;
}

export interface Machine {
  readonly cores: number;
  readonly cpu: string;
  readonly memoryGib: number;
  readonly node: string;
  readonly server: string;
  /** Processes that wanted to run in the minute before: what else the machine did. */
  readonly loadBefore: number;
  readonly date: string;
}

/** `loadBefore`: the load average when the run began. */
export function describeMachine(server: string, loadBefore: number): Machine {
  return {
    cores: availableParallelism(),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    memoryGib: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    server,
    loadBefore,
    date: new Date().toISOString(),
  };
}

/** Each column has a median of its own. */
export function resultOf(measurement: Measurement, samples: readonly Sample[]): Result {
  const { name, connections, batch } = measurement;
  const medianOf = (read: (sample: Sample) => number): number => median(samples.map(read));
  const rate = ({ events, seconds }: Sample): number => events / seconds;
  return {
    name,
    connections,
    batch,
    eventsPerSecond: Math.round(medianOf(rate)),
    roundsEventsPerSecond: samples.map((sample) => Math.round(rate(sample))),
    p50Ms: medianOf((sample) => sample.p50Ms),
    p99Ms: medianOf((sample) => sample.p99Ms),
    walBytesPerEvent: medianOf(({ walBytes, events }) => walBytes / events),
    transactionsPerEvent: medianOf(({ transactions, events }) => transactions / events),
    clientCpu: medianOf((sample) => sample.clientCpu),
    processCpu: medianOf((sample) => sample.processCpu),
    processSecondsPerThousand: medianOf(
      ({ processCpu, seconds, events }) => (processCpu * seconds * 1000) / events,
    ),
  };
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

const columns = [
  'events/s',
  'rounds',
  'p50 ms',
  'p99 ms',
  'WAL B/event',
  'tx/event',
  'client CPU',
  'process CPU',
  'CPU s/1000',
] as const;

/** The results for people: one line each. */
export function tableOf(machine: Machine, results: readonly Result[]): string {
  const { cores, cpu, memoryGib, node, server, loadBefore, date } = machine;
  const head = ['', 'conn.', 'batch', ...columns];
  const lines = [head, ...results.map(lineOf)];
  const widths = head.map((_, column) =>
    Math.max(...lines.map((line) => line[column]?.length ?? 0)),
  );
  const text = lines.map((line) =>
    line
      .map((cell, column) =>
        column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
      )
      .join('  '),
  );
  const title = `${cores} cores (${cpu}), ${memoryGib} GiB, ${server}, Node ${node}, load before ${loadBefore.toFixed(1)}, ${date}`;
  return [title, '', ...text].join('\n');
}

function lineOf(result: Result): string[] {
  return [
    result.name,
    String(result.connections),
    String(result.batch),
    result.eventsPerSecond.toLocaleString('en-US'),
    result.roundsEventsPerSecond.map(thousands).join(' ') + ' k',
    millisecondsOf(result.p50Ms),
    millisecondsOf(result.p99Ms),
    result.walBytesPerEvent.toFixed(0),
    result.transactionsPerEvent.toFixed(4),
    `${(result.clientCpu * 100).toFixed(0)} %`,
    `${(result.processCpu * 100).toFixed(0)} %`,
    result.processSecondsPerThousand.toFixed(3),
  ];
}

/** With three digits where it is little. */
function thousands(rate: number): string {
  return (rate / 1000).toFixed(rate < 1000 ? 3 : 1);
}

function millisecondsOf(value: number): string {
  return Number.isNaN(value) ? '' : value.toFixed(2);
}

/** Writes everything as JSON; returns the file's path. */
export async function writeResults(content: {
  readonly machine: Machine;
  readonly [member: string]: unknown;
}): Promise<string> {
  const folder = join(import.meta.dirname, 'results');
  await mkdir(folder, { recursive: true });
  const file = join(folder, `${content.machine.date.replaceAll(':', '-')}.json`);
  await writeFile(file, `${JSON.stringify(content, null, 2)}\n`);
  return file;
}
