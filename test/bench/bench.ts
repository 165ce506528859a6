// npm run bench: what the broker does on this machine, beside what PostgreSQL does with the same rows, all in one run.
// BENCH_DATABASE_URL: another server than the embedded one; its role must be allowed to create databases and to checkpoint.
// BENCH_SECONDS (2): how long each measurement takes, three times.
// BENCH_ONLY: a part of the names of the measurements that are taken, as push.
import { loadavg } from 'node:os';
import { copyTable } from './copy-into.ts';
import { type Lab, openLab } from './lab.ts';
import { type Measurement, pullMeasurements } from './measurements.ts';
import { pushMeasurements, ratiosOf } from './push-measurements.ts';
import { describeMachine, resultOf, tableOf, writeResults } from './results.ts';
import type { Sample } from './sample.ts';

const rounds = 3;
const warmUpSeconds = 0.5;
const seconds = Number(process.env['BENCH_SECONDS'] ?? 2);
const only = process.env['BENCH_ONLY'] ?? '';
const measurements = [...pullMeasurements, ...pushMeasurements].filter(({ name }) =>
  name.includes(only),
);
const startedAt = performance.now();
const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => interrupted.abort());
}

/** Round by round and not measurement by measurement: what the machine does beside hits all of them alike. */
async function measure(lab: Lab): Promise<Map<Measurement, Sample[]>> {
  const samples = new Map<Measurement, Sample[]>(measurements.map((each) => [each, []]));
  for (let round = 0; round <= rounds; round += 1) {
    const isWarmUp = round === 0;
    for (const [measurement, taken] of samples) {
      interrupted.signal.throwIfAborted();
      // each begins with the same cost of full-page writes
      await lab.control.query('checkpoint');
      const sample = await measurement.take(lab, isWarmUp ? warmUpSeconds : seconds);
      if (!isWarmUp) taken.push(sample);
    }
    await lab.empty();
    const what = isWarmUp ? 'warm-up' : `round ${round} of ${rounds}`;
    console.log(`${what}, ${((performance.now() - startedAt) / 1000).toFixed(0)} s`);
  }
  return samples;
}

async function main(): Promise<void> {
  const loadBefore = loadavg()[0] ?? 0;
  await using lab = await openLab(process.env['BENCH_DATABASE_URL']);
  await lab.control.query(copyTable);
  const samples = await measure(lab);
  const machine = describeMachine(lab.server, loadBefore);
  const results = [...samples].map(([measurement, taken]) => resultOf(measurement, taken));
  const committed = await lab.finish();
  console.log(`\n${tableOf(machine, results)}\n`);
  console.log(
    `JSON of 185 bytes, one subscription, four where a worker pushes; medians of ${rounds} rounds of ${seconds} s. tx: transactions that wrote; with those\n` +
      `that only read ${committed.toLocaleString('en-US')} in the whole run, fillings and warm-up included. CPU: of one core;\n` +
      `process: the API's, or the worker's, or that of the bare POSTs.`,
  );
  for (const line of ratiosOf(results)) console.log(line);
  const file = await writeResults({ machine, seconds, rounds, committed, results });
  console.log(`written to ${file}`);
}

try {
  await main();
} catch (error) {
  console.error(interrupted.signal.aborted ? 'interrupted' : error);
  process.exitCode = interrupted.signal.aborted ? 130 : 1;
}
