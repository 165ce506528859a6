import type { ConstantLoad, ConstantLoadOptions } from './load.ts';
import { describeReport, type LoadReport } from './load-report.ts';
import type { Stack } from './stack.ts';

/** The table of deploy/README.md, a row for each thing that was done to a stack under load. */
export class Measured {
  readonly #stack: () => Stack;
  readonly #rows: string[] = [];

  constructor(stack: () => Stack) {
    this.#stack = stack;
  }

  /**
   * Does it under load. Nothing may be lost, and each duplicate must be explained. The time until all is well again counts from the moment that
   * `work` resolves with (of the load's clock), else from its beginning.
   */
  async under(
    what: string,
    work: (load: ConstantLoad) => Promise<unknown>,
    options: Partial<ConstantLoadOptions> = {},
  ): Promise<LoadReport> {
    using load = await this.#stack().startLoad(options);
    await load.scenario.acceptMore(100);
    load.ledger.disrupt();
    const startedAt = load.now;
    const since = await work(load);
    await load.scenario.acceptMore(100);
    const report = await load.finish();
    console.log(`${what}: ${describeReport(report)}`);
    this.#add(what, report, typeof since === 'number' ? since : startedAt);
    const [violation] = report.findings.violations;
    if (violation !== undefined) throw new Error(`${what}: ${JSON.stringify(violation)}`);
    return report;
  }

  toString(): string {
    const head = ['event', 'sent', 'failed', 'lost', 'duplicated', 'next address', 'back after'];
    return [row(head), row(head.map(() => '---')), ...this.#rows].join('\n');
  }

  #add(what: string, report: LoadReport, since: number): void {
    const { sent, failed, lost, duplicated, unconnected } = report;
    const codes = [...Map.groupBy(failed, ({ code }) => code.replace(/ [\d.:]+$/, ''))];
    const how = codes.map(([code, those]) => `${those.length} ${code}`).join(', ');
    const cells = [
      what,
      sum(Object.values(sent)),
      how === '' ? '0' : `${failed.length} (${how})`,
      lost,
      duplicated,
      sum(unconnected.values()),
      `${(report.recoveryMs(since) / 1000).toFixed(1)} s`,
    ];
    this.#rows.push(row(cells.map(String)));
  }
}

function sum(numbers: Iterable<number>): number {
  return [...numbers].reduce((total, number) => total + number, 0);
}

function row(cells: readonly string[]): string {
  return `| ${cells.join(' | ')} |`;
}
