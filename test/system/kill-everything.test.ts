/**
 * Goal: whatever was answered with 202 is delivered to each subscription, although every process is killed again and again.
 *
 * Method: publishers (single events and arrays, with Idempotency-Key and without) and consumers work over HTTP and write down
 * what they hear. In the middle of that APIs, reaper and PostgreSQL, postmaster and all backends, are killed with SIGKILL
 * and started again, 3 times (20 with LONG=1). 5 % of the leases are overrun on purpose and acked late, half of them when
 * another consumer has the event. At the end the ledger is checked: nothing lost, nothing stored twice under one key, each
 * duplicate explained, no ack of an old lease accepted. PostgreSQL has fsync on: its shared memory, with what of the log is
 * not written yet, is lost in such a crash, the page cache of the system is not.
 *
 * The same ledger, over processes that are stopped (SIGSTOP) and go on.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';

import { Cluster } from '#test/support/cluster.ts';
import { CrashPostgres, killPostgres } from '#test/support/crash-postgres.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { describeFindings } from '#test/support/ledger-check.ts';
import { Scenario } from '#test/support/ledger-scenario.ts';

const rounds = process.env['LONG'] === undefined ? 3 : 20;
const timeoutMs = 60_000 + rounds * 20_000;

test(
  `nothing acknowledged is lost, and each duplicate is explained, over ${rounds} kills of everything`,
  { timeout: timeoutMs },
  async () => {
    await using postgres = await CrashPostgres.start();
    await using cluster = await Cluster.start({ databaseUrl: postgres.url, apis: 2 });
    using scenario = await Scenario.open(cluster, { databaseUrl: postgres.url });
    const load = scenario.startLoad();

    for (let round = 1; round <= rounds; round += 1) {
      await scenario.acceptMore(1000);
      scenario.ledger.disrupt();
      await Promise.all([cluster.killAll('SIGKILL'), postgres.crash()]);
      await postgres.restart();
      await cluster.startAll();
    }
    await scenario.acceptMore(1000);
    await scenario.drain(load);

    const findings = await scenario.findings();
    console.log(describeFindings(findings));
    expect(findings.violations.length, describeFindings(findings)).toBe(0);
    expect(findings.counts.lease_lost, 'late acks must have been refused').toBeGreaterThan(0);
    expect(findings.duplicates['the lease ran out'] ?? 0).toBeGreaterThan(0);
  },
);

test(
  `the same over ${rounds} kills of npm start, every other time without the PostgreSQL that it has started`,
  { timeout: timeoutMs },
  async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'event-broker-test-'));
    try {
      await killNpmStart(dataDir);
    } finally {
      await killPostgres(await postmasterOf(dataDir)).catch(() => undefined);
      await rm(dataDir, { recursive: true, force: true });
    }
  },
);

async function killNpmStart(dataDir: string): Promise<void> {
  await using cluster = await Cluster.start({ dataDir });
  const read = async (name: string) => (await readFile(join(dataDir, name), 'utf8')).trim();
  const databaseUrl = `postgres://broker:${await read('postgres.password')}@127.0.0.1:${await read('postgres.port')}/broker`;
  using scenario = await Scenario.open(cluster, { databaseUrl });
  const load = scenario.startLoad();
  for (let round = 1; round <= rounds; round += 1) {
    await scenario.acceptMore(500);
    scenario.ledger.disrupt();
    const postmaster = await postmasterOf(dataDir);
    await Promise.all([cluster.killAll('SIGKILL'), round % 2 === 1 && killPostgres(postmaster)]);
    await cluster.startAll();
  }
  await scenario.acceptMore(500);
  await scenario.drain(load);
  const findings = await scenario.findings();
  console.log(describeFindings(findings));
  expect(findings.violations.length, describeFindings(findings)).toBe(0);
}

async function postmasterOf(dataDir: string): Promise<number> {
  const [pid = ''] = (await readFile(join(dataDir, 'postgres/postmaster.pid'), 'utf8')).split('\n');
  return Number(pid);
}

test('a process that stands still for longer than its leases breaks nothing when it goes on', async () => {
  await using database = await cloneDatabase();
  await using cluster = await Cluster.start({ databaseUrl: database.url, apis: 2 });
  using scenario = await Scenario.open(cluster, { databaseUrl: database.url });
  const load = scenario.startLoad({ leaseSeconds: 1 });

  for (const api of cluster.apis) {
    await scenario.acceptMore(500);
    scenario.ledger.disrupt();
    api.pause();
    const pausedAt = performance.now();
    // What it had claimed, and what was sent to it meanwhile, it acts upon when the leases are somebody else's.
    await eventually(() => expect(performance.now() - pausedAt).toBeGreaterThan(3000));
    api.continue();
  }
  await scenario.acceptMore(500);
  await scenario.drain(load);

  const findings = await scenario.findings();
  console.log(describeFindings(findings));
  expect(findings.violations.length, describeFindings(findings)).toBe(0);
});
