/**
 * Goal: the stack comes up on three hosts by the project's own commands, and everything that an operator does to it, or that happens to it, costs no
 * accepted event; what it costs clients is counted and printed as the table of deploy/README.md.
 *
 * Method: a Swarm of three hosts, a constant load through nginx on all of them with a ledger, one event after the other; PostgreSQL is on host 1.
 */
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { type Lab, startLab } from './lab.ts';
import type { ConstantLoad } from './load.ts';
import { describeReport, type LoadReport } from './load-report.ts';
import { Stack } from './stack.ts';

const engine = inject('docker');
const rows: string[] = [];

describe.skipIf(engine.missingHosts !== undefined)('the stack on three hosts', () => {
  let lab: Lab;
  let stack: Stack;

  beforeAll(async () => {
    lab = await startLab({ managers: 1 });
    stack = await Stack.prepare(lab);
  }, 600_000);
  afterAll(async () => {
    console.log(
      ['| event | sent | failed | lost | duplicated | no connection | back after |', ...rows].join(
        '\n',
      ),
    );
    await lab[Symbol.asyncDispose]();
  }, 120_000);

  /** Does it under load, and puts what came of it into the table. Nothing may be lost, and each duplicate must be explained. */
  async function under(
    what: string,
    work: (load: ConstantLoad) => Promise<number | void>,
  ): Promise<LoadReport> {
    using load = await stack.startLoad();
    await load.scenario.acceptMore(100);
    const since = load.now;
    const recoveredFrom = (await work(load)) ?? since;
    await load.scenario.acceptMore(100);
    const report = await load.finish();
    console.log(`${what}: ${describeReport(report)}`);
    const sent = Object.values(report.sent).reduce((sum, count) => sum + count, 0);
    const unconnected = [...report.unconnected.values()].reduce((sum, count) => sum + count, 0);
    const back = (report.recoveryMs(recoveredFrom) / 1000).toFixed(1);
    rows.push(
      `| ${what} | ${sent} | ${report.failed.length} | ${report.lost} | ${report.duplicated} | ${unconnected} | ${back} s |`,
    );
    expect(report.findings.violations).toEqual([]);
    return report;
  }

  test('a deployment from nothing: secrets, PostgreSQL, roles, migration, replicas, nginx, and an event gets through', async () => {
    const said = await stack.command('deploy', '--yes');
    expect(said).toContain('Smoke test passed.');
    expect(said).toContain('nginx of node3 answers');
    const status = await stack.command('status');
    expect(status).toContain('Everything runs as it should.');
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
    expect(await stack.spread('worker')).toEqual([1, 1, 1]);
    expect(await stack.spread('nginx')).toEqual([1, 1, 1]);
  }, 600_000);

  test('nothing happens: nothing fails', async () => {
    const report = await under('nothing', async (load) => load.scenario.acceptMore(300));
    expect(report.failed).toEqual([]);
  }, 300_000);
});
