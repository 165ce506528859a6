import type { Findings } from './findings.ts';

const faultsShown = 20;

/** Notes that are many have a line each. */
type Row = readonly [name: string, value: string, ...notes: string[]];

/** The table at the end, and what is wrong in words. */
export function reportOf(findings: Findings, seconds: number): string {
  const { events, ways, delivered, push, redriven, lost, altered, faults } = findings;
  const duplicates = sum(findings.duplicates);
  const deadLetters = sum(findings.deadLetters);
  const rows: readonly Row[] = [
    ['published', count(events), `events in ${count(findings.publishMs.length)} requests`],
    ['repeated', count(findings.repeats), 'requests, each answered as a duplicate'],
    ['delivered', count(delivered), `leases of ${count(ways)} events, by pull`],
    ['unseen', count(findings.unseen), 'leases whose answers went with closed connections'],
    ...pushRows(push),
    ['retried', count(sum(findings.retried)), ...reasons(findings.retried)],
    ['duplicates', count(duplicates), ...reasons(findings.duplicates)],
    ['dead-lettered', count(deadLetters), ...reasons(findings.deadLetters)],
    ['redriven', count(redriven), 'of them, delivered again under their first ids'],
    ['lost', count(lost)],
    ['altered', count(altered), 'data compared character by character'],
    ['publish', ...percentiles(findings.publishMs, 'until its answer')],
    ['pull', ...percentiles(findings.endToEndMs, 'from publish to a consumer')],
    ...delayRows(push),
    ['took', `${seconds.toFixed(1)} s`],
  ];
  const lines = rows.flatMap(linesOf);
  return [...lines, ...faultLines(faults)].join('\n');
}

function linesOf([name, value, first = '', ...notes]: Row): string[] {
  return [
    `  ${name.padEnd(14)}${value.padStart(10)}   ${first}`.trimEnd(),
    ...notes.map((note) => `${' '.repeat(29)}${note}`),
  ];
}

function pushRows(push: Findings['push']): Row[] {
  if (push === undefined) return [];
  const { requests, events, signatures, badSignatures } = push;
  const verdict = badSignatures === 0 ? 'all good' : `${count(badSignatures)} bad`;
  return [
    ['pushed', count(requests), `signed requests with ${count(events)} events`],
    ['signatures', count(signatures), `checked by the standardwebhooks package, ${verdict}`],
  ];
}

function delayRows(push: Findings['push']): Row[] {
  if (push === undefined) return [];
  return [
    ['push', ...percentiles(push.arrivalMs, 'from publish to the endpoint')],
    [
      'worst delay',
      `${push.worstMs.toFixed(1)} ms`,
      'from publish to a push that was accepted, retries included',
    ],
  ];
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
function percentiles(times: readonly number[], what: string): [string, string] {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number): string =>
    `${(sorted[Math.ceil(share * sorted.length) - 1] ?? 0).toFixed(1)} ms`;
  return [at(0.5), `p50; p99 ${at(0.99)}; ${what}`];
}

function reasons(counts: ReadonlyMap<string, number>): string[] {
  return [...counts].map(([reason, times]) => `${count(times)} ${reason}`);
}

function sum(counts: ReadonlyMap<string, number>): number {
  return [...counts.values()].reduce((total, times) => total + times, 0);
}

function count(value: number): string {
  return value.toLocaleString('en-US');
}
