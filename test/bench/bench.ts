// npm run bench: what the broker does on this machine, beside what PostgreSQL does with the same rows, all in one run.
// BENCH_DATABASE_URL: another server than the embedded one; its role must be allowed to create databases and to checkpoint.
// BENCH_SECONDS (2): how long each measurement takes, three times.
import { copyTable } from './copy-into.ts';
import { openLab } from './lab.ts';
import { type Measurement, measurements } from './measurements.ts';
import { describeMachine, resultOf, tableOf, writeResults } from './results.ts';
import type { Sample } from './sample.ts';

const rounds = 3;
const warmUpSeconds = 0.5;
const seconds = Number(process.env['BENCH_SECONDS'] ?? 2);

const startedAt = performance.now();
await using lab = await openLab(process.env['BENCH_DATABASE_URL']);
await lab.control.query(copyTable);
const samples = new Map<Measurement, Sample[]>(measurements.map((each) => [each, []]));
let events = 0;

// Round by round and not measurement by measurement: what the machine does beside hits all of them alike.
for (let round = 0; round <= rounds; round += 1) {
  const isWarmUp = round === 0;
  for (const [measurement, taken] of samples) {
    // each begins with the same cost of full-page writes
    await lab.control.query('checkpoint');
    const sample = await measurement.take(lab, isWarmUp ? warmUpSeconds : seconds);
    events += sample.events;
    if (!isWarmUp) taken.push(sample);
  }
  await lab.empty();
  const what = isWarmUp ? 'warm-up' : `round ${round} of ${rounds}`;
  console.log(`${what}, ${((performance.now() - startedAt) / 1000).toFixed(0)} s`);
}

const machine = describeMachine(lab.server);
const results = [...samples].map(([measurement, taken]) => resultOf(measurement, taken));
const committed = await lab.finish();
console.log(`\n${tableOf(machine, results)}\n`);
console.log(
  `JSON of 185 bytes, one subscription; medians of ${rounds} rounds of ${seconds} s. tx: transactions that wrote; with those that only read ` +
    `${committed.toLocaleString('en-US')} (pg_stat_database) in the whole run, fillings and warm-up included. ` +
    'client CPU: of one core, by this process.',
);
console.log(
  `written to ${await writeResults({ machine, seconds, rounds, committed, events, results })}`,
);
