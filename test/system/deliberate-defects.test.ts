/**
 * Goal: the tests of the promises can fail. A ledger that finds nothing proves something only if it finds what is there.
 *
 * Method: the broker of a test's own database is broken in one place, by a setting or by changing one of its functions, and
 * driven as in kill-everything.test.ts; then the ledger must report what that breaks. Only with LONG=1.
 */
import { describe, expect, test } from 'vitest';

import { Cluster } from '#test/support/cluster.ts';
import { CrashPostgres } from '#test/support/crash-postgres.ts';
import { query } from '#test/support/database.ts';
import { breakFunction } from '#test/support/deliberate-defect.ts';
import { describeFindings } from '#test/support/ledger-check.ts';
import type { ViolationKind } from '#test/support/ledger-findings.ts';
import { Scenario } from '#test/support/ledger-scenario.ts';

const timeoutMs = 180_000;

/** Commits are told before they are on disk: without the kick of each full page or megabyte, only every ten seconds. */
const asynchronousCommit = {
  synchronous_commit: 'off',
  wal_writer_delay: '10s',
  wal_writer_flush_after: '1GB',
  wal_buffers: '64MB',
};

describe.skipIf(process.env['LONG'] === undefined)(
  'a broker that is broken on purpose is found out',
  () => {
    test(
      'synchronous_commit = off, and a crash: acknowledged events are lost',
      { timeout: timeoutMs },
      async () => {
        await using postgres = await CrashPostgres.start(asynchronousCommit);
        await using cluster = await Cluster.start({ databaseUrl: postgres.url, apis: 2 });
        using scenario = await Scenario.open(cluster, { databaseUrl: postgres.url });
        // What was made before must not be lost with it.
        await query(postgres.superuserUrl, 'checkpoint');
        // Nobody consumes yet: what was delivered before the crash would not be missed after it.
        const publishing = scenario.startLoad({ consumers: 0, aheadMax: Infinity });
        await scenario.acceptMore(1000);
        scenario.ledger.disrupt();
        await Promise.all([cluster.killAll('SIGKILL'), postgres.crash()]);
        await postgres.restart();
        await cluster.startAll();
        await publishing.stop();
        const load = scenario.startLoad();
        await scenario.acceptMore(100);
        await scenario.drain(load);

        const found = await kindsOfViolations(scenario);
        expect(found).toContain('lost');
      },
    );

    test(
      'no generation check in settle: acks of old leases are accepted',
      { timeout: timeoutMs },
      async () => {
        await using postgres = await CrashPostgres.start();
        await breakFunction(postgres.superuserUrl, 'broker.settle', [
          ['q.generation = u.generation', 'true'],
          ['q.generation = k.generation', 'true'],
        ]);
        await using cluster = await Cluster.start({ databaseUrl: postgres.url });
        using scenario = await Scenario.open(cluster, { databaseUrl: postgres.url });
        const load = scenario.startLoad({ leaseSeconds: 1, overrunShare: 0.2 });
        await scenario.acceptMore(5000);
        await scenario.drain(load);

        const found = await kindsOfViolations(scenario);
        expect(found).toContain('stale_ack');
      },
    );

    test(
      'no term check in reap: the writes of an old leader are accepted',
      { timeout: timeoutMs },
      async () => {
        await using postgres = await CrashPostgres.start();
        await using cluster = await Cluster.start({ databaseUrl: postgres.url, reapers: 0 });
        using scenario = await Scenario.open(cluster, {
          databaseUrl: postgres.url,
          subscriptions: ['billing'],
        });
        const [url = ''] = cluster.urls;
        await scenario.client.publish(`${url}/api/v1/topics/orders`, ['only']);
        await scenario.client.receive(url, 'billing', { max: 1, waitSeconds: 5, leaseSeconds: 1 });
        await query(postgres.url, 'update broker.queue set lease_expires_at = clock_timestamp()');
        await query(postgres.url, 'update broker.leader set term = 7');
        const reapAsOldLeader = async (): Promise<unknown[]> =>
          query(
            postgres.url,
            `select expired_events from broker.topic t, broker.reap(t.id, 6, 100, '-infinity')`,
          );

        await expect(reapAsOldLeader()).rejects.toMatchObject({ code: 'BR001' });
        await breakFunction(postgres.superuserUrl, 'broker.reap', [
          ['perform broker.assert_term(p_term);', ''],
        ]);
        expect(await reapAsOldLeader()).toEqual([{ expired_events: 1 }]);
      },
    );
  },
);

async function kindsOfViolations(scenario: Scenario): Promise<Set<ViolationKind>> {
  const findings = await scenario.findings();
  console.log(describeFindings(findings));
  return new Set(findings.violations.map(({ kind }) => kind));
}
