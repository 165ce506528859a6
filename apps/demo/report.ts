import type { Findings } from './findings.ts';

const faultsShown = 20;

/** The table at the end, and what is wrong in words. */
export function reportOf(findings: Findings, seconds: number): string {
  const { events, ways, delivered, retried, redriven, lost, altered, faults } = findings;
  const duplicates = sum(findings.duplicates);
  const deadLetters = sum(findings.deadLetters);
  const rows: readonly (readonly [string, string, string])[] = [
    ['published', count(events), `events in ${count(findings.publishMs.length)} requests`],
    ['repeated', count(findings.repeats), 'requests, each answered as a duplicate'],
    ['delivered', count(delivered), `leases of ${count(ways)} events for the subscriptions`],
    ['unseen', count(findings.unseen), 'leases whose answers went with closed connections'],
    ['retried', count(retried), 'after a nack'],
    ['duplicates', count(duplicates), reasons(findings.duplicates)],
    ['dead-lettered', count(deadLetters), reasons(findings.deadLetters)],
    ['redriven', count(redriven), 'of them, delivered again under their first ids'],
    ['lost', count(lost), ''],
    ['altered', count(altered), 'data compared character by character'],
    ['publish', ...percentiles(findings.publishMs)],
    ['end to end', ...percentiles(findings.endToEndMs)],
    ['took', `${seconds.toFixed(1)} s`, ''],
  ];
  const lines = rows.map(([name, value, note]) =>
    `  ${name.padEnd(14)}${value.padStart(10)}   ${note}`.trimEnd(),
  );
  return [...lines, ...faultLines(faults)].join('\n');
}

function faultLines(faults: readonly string[]): string[] {
  if (faults.length === 0) return [];
  const more = faults.length - faultsShown;
  return [
    '',
    `${faults.length} faults:`,
    ...faults.slice(0, faultsShown).map((fault) => `  ${fault}`),
    ...(more > 0 ? [`  and ${more} more`] : []),
  ];
}

/** The middle and the 99th percentile of some times in ms. */
function percentiles(times: readonly number[]): [string, string] {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number): string =>
    `${(sorted[Math.ceil(share * sorted.length) - 1] ?? 0).toFixed(1)} ms`;
  return [at(0.5), `p50; p99 ${at(0.99)}`];
}

function reasons(counts: ReadonlyMap<string, number>): string {
  return [...counts].map(([reason, times]) => `${times} ${reason}`).join('; ');
}

function sum(counts: ReadonlyMap<string, number>): number {
  return [...counts.values()].reduce((total, times) => total + times, 0);
}

function count(value: number): string {
  return value.toLocaleString('en-US');
}
