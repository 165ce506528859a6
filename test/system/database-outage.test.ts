/**
 * Goal: an outage of the database loses nothing that was acknowledged, ends no process and fills no memory and no log;
 * callers are told the truth meanwhile, and everything goes on by itself afterwards.
 *
 * Method: publishers and consumers with a ledger over two API processes and a reaper. PostgreSQL is shut down and started
 * again, then killed with all its backends; through a TCP proxy connections are cut in the middle of publishes and settles,
 * and made to fall silent. Of what is answered meanwhile each refusal must be 503 with Retry-After and one of few codes.
 * Bounds: the log lines that are no access log, and the resident memory, compared before and after.
 */
import { expect, test } from 'vitest';

import { Cluster, type BrokerProcess } from '#test/support/cluster.ts';
import { CrashPostgres } from '#test/support/crash-postgres.ts';
import { eventually } from '#test/support/eventually.ts';
import { describeFindings } from '#test/support/ledger-check.ts';
import type { Load } from '#test/support/ledger-load.ts';
import { Scenario } from '#test/support/ledger-scenario.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';

/** What a caller may be told while the database is away; no_answer: none, which no test here wants. */
const outageCodes = ['database_unavailable', 'outcome_unknown', 'database_busy'];
/** Liveness: it works again within seconds. */
const recoveryMs = 15_000;
const refusalsWanted = 200;

test('PostgreSQL is restarted, and killed, under load', async () => {
  await using postgres = await CrashPostgres.start();
  await using cluster = await Cluster.start({ databaseUrl: postgres.url, apis: 2 });
  using scenario = await Scenario.open(cluster, { databaseUrl: postgres.url });
  const load = scenario.startLoad();
  await scenario.acceptMore(1000);
  const watch = await watchProcesses(cluster.all);

  for (const end of ['stop', 'crash'] as const) {
    scenario.ledger.disrupt();
    await postgres[end]();
    await heardRefusals(scenario, refusalsWanted);
    await postgres.restart();
    await expectRecovery(cluster, scenario);
    await scenario.acceptMore(500);
  }

  await expectNothingLost(scenario, load);
  expectOutageCodes(scenario);
  await watch.expectUnharmed({ outages: 2, scenario });
});

test('connections are cut in the middle of publishes and settles', async () => {
  await using postgres = await CrashPostgres.start();
  await using proxy = await startTcpProxy({ port: postgres.port });
  const databaseUrl = proxy.through(postgres.url);
  await using cluster = await Cluster.start({ databaseUrl, apis: 2 });
  using scenario = await Scenario.open(cluster, { databaseUrl: postgres.url });
  const load = scenario.startLoad();
  await scenario.acceptMore(200);
  const watch = await watchProcesses(cluster.all);

  for (let turn = 1; turn <= 10; turn += 1) {
    scenario.ledger.disrupt();
    // The call is passed on and carried out, and its answer never arrives.
    await proxy.cutAfter('broker.publish_batch');
    await proxy.cutAfter('broker.settle');
    await proxy.cutAfter('broker.claim');
    await proxy.cutAfter('broker.publish_batch', 'before');
    await scenario.acceptMore(50, recoveryMs);
    proxy.cut();
    await scenario.acceptMore(50, recoveryMs);
  }

  const findings = await expectNothingLost(scenario, load);
  expect(findings.counts.unknown_publishes, 'some were cut').toBeGreaterThan(5);
  expectOutageCodes(scenario);
  await watch.expectUnharmed({ outages: 50, scenario });
});

test('connections fall silent', async () => {
  await using postgres = await CrashPostgres.start();
  await using proxy = await startTcpProxy({ port: postgres.port });
  const databaseUrl = proxy.through(postgres.url);
  await using cluster = await Cluster.start({
    databaseUrl,
    apis: 2,
    env: { STATEMENT_TIMEOUT_MS: '1000' },
  });
  using scenario = await Scenario.open(cluster, { databaseUrl: postgres.url });
  const load = scenario.startLoad();
  await scenario.acceptMore(500);
  const watch = await watchProcesses(cluster.all);

  scenario.ledger.disrupt();
  proxy.blackhole();
  await heardRefusals(scenario, 10);
  await eventually(async () => {
    const { status } = await fetch(`${cluster.urls[0]}/api/health`);
    expect(status).toBe(503);
    const live = await fetch(`${cluster.urls[0]}/api/health/live`);
    expect(live.status).toBe(204);
  });
  proxy.restore();
  await expectRecovery(cluster, scenario);
  await scenario.acceptMore(200);

  await expectNothingLost(scenario, load);
  expectOutageCodes(scenario);
  await watch.expectUnharmed({ outages: 1, scenario });
});

async function expectRecovery(cluster: Cluster, scenario: Scenario): Promise<void> {
  const startedAt = performance.now();
  const tookMs = (): string => (performance.now() - startedAt).toFixed();
  await scenario.acceptMore(1, recoveryMs);
  const published = tookMs();
  await Promise.all(cluster.all.map((each) => each.ready(recoveryMs)));
  console.log(`publishing again after ${published} ms, all ready after ${tookMs()} ms`);
}

function refusals(scenario: Scenario): number {
  return [...scenario.client.codes.values()].reduce((sum, count) => sum + count, 0);
}

async function heardRefusals(scenario: Scenario, count: number): Promise<void> {
  const target = refusals(scenario) + count;
  const look = (): void => expect(refusals(scenario)).toBeGreaterThanOrEqual(target);
  await eventually(look, { timeoutMs: 30_000, what: 'refused requests' });
}

async function expectNothingLost(scenario: Scenario, load: Load) {
  await scenario.drain(load);
  const findings = await scenario.findings();
  const { publishes, settles } = scenario.ledger;
  const slowestMs = Math.max(...[...publishes, ...settles].map(({ at, doneAt }) => doneAt - at));
  const codes = JSON.stringify(Object.fromEntries(scenario.client.codes));
  console.log(
    `${describeFindings(findings)}\n${codes}\nslowest answer after ${slowestMs.toFixed()} ms`,
  );
  expect(findings.violations.length, describeFindings(findings)).toBe(0);
  return findings;
}

function expectOutageCodes(scenario: Scenario): void {
  const others = [...scenario.client.codes].filter(([code]) => !outageCodes.includes(code));
  expect(others).toEqual([]);
}

/** Remembers the processes as they are, to compare them later. */
async function watchProcesses(processes: readonly BrokerProcess[]) {
  const before = await Promise.all(processes.map(look));
  return {
    async expectUnharmed({ outages, scenario }: { outages: number; scenario: Scenario }) {
      const after = await Promise.all(processes.map(look));
      for (const [index, { name, pid, residentMb, lines }] of after.entries()) {
        const was = before[index]!;
        const own = lines.slice(was.lines.length).filter(({ msg }) => msg !== 'request');
        const access = lines.length - was.lines.length - own.length;
        const growth = residentMb - was.residentMb;
        console.log(
          `${name}: resident ${was.residentMb.toFixed()} → ${residentMb.toFixed()} MB; ${own.length} log lines and ` +
            `${access} of the access log, ${refusals(scenario)} refused requests`,
        );
        expect(pid, `${name} is the process that it was`).toBe(was.pid);
        expect(growth, `${name} has not grown by much`).toBeLessThan(150);
        const texts = own.map((line) => `${line.msg} ${JSON.stringify(line)}`.slice(0, 200));
        expect(own.length, texts.join('\n')).toBeLessThanOrEqual(outages * 10);
      }
    },
  };
}

async function look(each: BrokerProcess) {
  return {
    name: each.name,
    pid: each.pid,
    residentMb: await each.residentMb(),
    lines: [...each.logs],
  };
}
