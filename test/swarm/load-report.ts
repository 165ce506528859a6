import type { Findings } from '#test/support/ledger-check.ts';
import type { Ledger, Operation, PublishOperation } from '#test/support/ledger.ts';

/** What a client does. `keyed` and `plain` are single events with and without a key. */
export type RequestKind = 'keyed' | 'plain' | 'batch' | 'receive' | 'ack';

export interface FailedRequest {
  readonly kind: RequestKind;
  /** Code of the problem, or what became of the connection. */
  readonly code: string;
  /** When it was begun and when it had failed, in milliseconds since the load began. */
  readonly at: number;
  readonly doneAt: number;
}

export interface LoadReport {
  readonly durationMs: number;
  /** Requests that were begun, repetitions too. */
  readonly sent: Readonly<Record<RequestKind, number>>;
  /** Those that were not answered with success, whether they were repeated or not. */
  readonly failed: readonly FailedRequest[];
  /** Publishes that were not begun because too many were under way. */
  readonly heldBack: number;
  /** Connections that could not be made, by address and cause; the next address was asked. */
  readonly unconnected: ReadonlyMap<string, number>;
  /** Of the publishes that were accepted. */
  readonly slowestMs: number;
  /** The longest time in which no publish was answered with success. */
  readonly longestSilenceMs: number;
  /** Accepted events that never arrived, or were never acknowledged. */
  readonly lost: number;
  /** Events that came more than once for a reason that is known. */
  readonly duplicated: number;
  readonly findings: Findings;
  /**
   * Milliseconds from a moment (of the load's clock) until the last request was over that failed or took longer than 2 s; 0 when there was none.
   * `before` ends the search, where something else happened then.
   */
  recoveryMs(since: number, before?: number): number;
}

export interface ReportParts {
  readonly startedAt: number;
  readonly durationMs: number;
  readonly heldBack: number;
  readonly unconnected: ReadonlyMap<string, number>;
  readonly findings: Findings;
}

const slowMs = 2000;

export function kindOf({ tags, key }: PublishOperation): RequestKind {
  if (tags.length > 1) return 'batch';
  return key === undefined ? 'plain' : 'keyed';
}

/** Puts together what clients saw and what the ledger found, once nothing is on its way any more. */
export function reportOf(ledger: Ledger, parts: ReportParts): LoadReport {
  const { startedAt, durationMs, heldBack, unconnected, findings } = parts;
  const { publishes, receives, settles } = ledger;
  const requests: (readonly [RequestKind, Operation])[] = [
    ...publishes.map((each) => [kindOf(each), each] as const),
    // those that wait when the load ends are broken off by the client
    ...receives
      .filter(({ doneAt, outcome }) => outcome === 'ok' || doneAt - startedAt <= durationMs)
      .map((each) => ['receive', each] as const),
    ...settles.map((each) => ['ack', each] as const),
  ];
  const sent = { keyed: 0, plain: 0, batch: 0, receive: 0, ack: 0 };
  for (const [kind] of requests) sent[kind] += 1;
  const failed = requests
    .filter(([, { outcome }]) => outcome !== 'ok')
    .map(([kind, { at, doneAt, code = 'no answer' }]): FailedRequest => {
      return { kind, code, at: at - startedAt, doneAt: doneAt - startedAt };
    })
    .toSorted((a, b) => a.at - b.at);
  const accepted = publishes.filter(({ outcome }) => outcome === 'ok');
  const slow = accepted.filter(({ at, doneAt }) => doneAt - at > slowMs);
  const ends = [
    ...failed.map(({ doneAt }) => doneAt),
    ...slow.map(({ doneAt }) => doneAt - startedAt),
  ];
  return {
    durationMs,
    sent,
    failed,
    heldBack,
    unconnected,
    slowestMs: accepted.reduce((most, { at, doneAt }) => Math.max(most, doneAt - at), 0),
    longestSilenceMs: longestGap(accepted, startedAt, startedAt + durationMs),
    lost: findings.violations.filter(({ kind }) => kind === 'lost' || kind === 'vanished').length,
    duplicated: Object.values(findings.duplicates).reduce((sum, count) => sum + count, 0),
    findings,
    recoveryMs(since, before = Infinity) {
      const last = Math.max(since, ...ends.filter((at) => at >= since && at < before));
      return last - since;
    },
  };
}

/** One line for a log or a table; the failures by kind and code with the time of the first and of the last. */
export function describeReport(report: LoadReport): string {
  const { durationMs, sent, failed, heldBack, unconnected, findings } = report;
  const total = Object.values(sent).reduce((sum, count) => sum + count, 0);
  const groups = Map.groupBy(failed, ({ kind, code }) => `${kind}: ${code}`);
  const lines = [...groups].map(([name, those]) => {
    const [first, last] = [those[0]?.at ?? 0, those.at(-1)?.doneAt ?? 0];
    return `  ${name} × ${those.length}, ${seconds(first)} to ${seconds(last)}`;
  });
  const unexplained = findings.violations.length - report.lost;
  return [
    `${total} sent in ${seconds(durationMs)} (${JSON.stringify(sent)}), ${failed.length} failed, ${report.lost} lost, ` +
      `${report.duplicated} duplicated and explained, ${unexplained} other findings, ${heldBack} held back; ` +
      `slowest publish ${seconds(report.slowestMs)}, longest silence ${seconds(report.longestSilenceMs)}`,
    ...lines,
    ...[...unconnected].map(([what, count]) => `  no connection: ${what} × ${count}`),
    ...Object.entries(findings.duplicates).map(([reason, count]) => `  ${reason} × ${count}`),
    ...findings.violations.slice(0, 5).map(({ kind, detail }) => `  ${kind}: ${detail}`),
  ].join('\n');
}

function longestGap(accepted: readonly Operation[], from: number, to: number): number {
  const times = accepted.map(({ doneAt }) => doneAt).filter((at) => at < to);
  let longest = 0;
  let last = from;
  for (const at of [...times.toSorted((a, b) => a - b), to]) {
    longest = Math.max(longest, at - last);
    last = at;
  }
  return longest;
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
