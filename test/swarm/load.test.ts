/**
 * Goal: the load that the tests of the stack are measured with sees what happens, and nothing that does not.
 *
 * Method: without Docker: two nginx, each an address of its own, in front of real processes. A quiet run, one in which an address goes away, one in
 * which everything behind nginx dies for a while, and one in which the database is robbed of what was accepted.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';

import { Cluster } from '#test/support/cluster.ts';
import { cloneDatabase, query } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { findNginx } from '#test/support/nginx-binary.ts';
import { Nginx } from '#test/support/nginx.ts';

import { ConstantLoad, type ConstantLoadOptions } from './load.ts';
import { describeReport } from './load-report.ts';

const resources = new AsyncDisposableStack();
let databaseUrl: string;
let cluster: Cluster;
let fronts: readonly Nginx[];
let count = 0;

beforeAll(async () => {
  const database = resources.use(await cloneDatabase());
  databaseUrl = database.url;
  cluster = resources.use(
    await Cluster.start({
      databaseUrl,
      workers: 1,
      env: { TRUST_PROXY: '127.0.0.1' },
    }),
  );
  const binary = resources.use(await findNginx());
  const [api] = cluster.urls.map((url) => new URL(url));
  const settings = {
    // an address needs no name server
    API_NAME: '127.0.0.1',
    API_PORT: api?.port ?? '',
    DNS_RESOLVER: '127.0.0.1',
    ADMIN_ALLOW: 'all',
  };
  fronts = [
    resources.use(await Nginx.start(binary, settings)),
    resources.use(await Nginx.start(binary, settings)),
  ];
});
afterAll(async () => resources.disposeAsync());

/** Each on a topic of its own: its findings are about all that is stored. */
async function startLoad(options: Partial<ConstantLoadOptions> = {}): Promise<ConstantLoad> {
  count += 1;
  const load = await ConstantLoad.start({
    addresses: fronts.map(({ url }) => url),
    adminKey: cluster.adminKey,
    databaseUrl,
    topic: `orders${count}`,
    subscriptions: [`billing${count}`],
    pushSubscriptions: [`mailer${count}`],
    perSecond: 50,
    leaseSeconds: 3,
    ...options,
  });
  return load;
}

test('nothing happens: nothing failed, lost or duplicated, every kind of request was at work', async () => {
  using load = await startLoad();
  await load.scenario.acceptMore(400);
  const report = await load.finish();
  console.log(describeReport(report));
  const { failed, lost, duplicated, findings, sent, heldBack } = report;
  expect({ failed, lost, duplicated, heldBack }).toEqual({
    failed: [],
    lost: 0,
    duplicated: 0,
    heldBack: 0,
  });
  expect(findings.violations).toEqual([]);
  for (const [kind, number] of Object.entries(sent)) expect(number, kind).toBeGreaterThan(0);
  expect(findings.counts.pushes).toBeGreaterThanOrEqual(400);
  expect(report.unconnected.size).toBe(0);
});

test('an address that goes away costs nothing: the clients take the next one, and say so', async () => {
  const [, leaving] = fronts;
  if (leaving === undefined) throw new Error('no second nginx');
  using load = await startLoad({ waitSeconds: 2 });
  await load.scenario.acceptMore(200);
  leaving.signal('SIGQUIT');
  await eventually(() => expect(load.unconnected.get(`${leaving.url} ECONNREFUSED`)).toBeDefined());
  await load.scenario.acceptMore(200);
  const report = await load.finish();
  console.log(describeReport(report));
  expect([report.failed, report.lost, report.findings.violations]).toEqual([[], 0, []]);
  expect([...report.unconnected.keys()]).toEqual([`${leaving.url} ECONNREFUSED`]);
});

test('what fails is told with its cause and its time, keys are repeated, and nothing is lost', async () => {
  using load = await startLoad({ addresses: [fronts[0]?.url ?? ''] });
  await load.scenario.acceptMore(200);
  const diedAt = load.now;
  const [api] = cluster.apis;
  load.ledger.disrupt();
  await api?.kill();
  const looked = (): void => expect(load.failedCount).toBeGreaterThan(20);
  await eventually(looked);
  await api?.start();
  await api?.ready();
  load.ledger.disrupt();
  await load.scenario.acceptMore(200);
  const report = await load.finish();
  console.log(describeReport(report));
  expect(report.failed.length).toBeGreaterThan(20);
  for (const { code, doneAt } of report.failed) {
    expect(code).toMatch(/^(upstream_unavailable|upstream_timeout|starting|shutting_down)$/);
    expect(doneAt).toBeGreaterThan(diedAt);
  }
  expect(new Set(report.failed.map(({ kind }) => kind))).toContain('plain');
  expect(report.recoveryMs(diedAt)).toBeGreaterThan(0);
  expect(report.recoveryMs(report.durationMs)).toBe(0);
  expect(report.longestSilenceMs).toBeGreaterThan(0);
  expect(report.lost, describeReport(report)).toBe(0);
  // every key was answered in the end
  const { publishes } = load.ledger;
  const answered = new Set(
    publishes.flatMap(({ key, outcome }) => (outcome === 'ok' ? [key] : [])),
  );
  expect(publishes.filter(({ key }) => key !== undefined && !answered.has(key))).toEqual([]);
});

test('what the broker loses is found', async () => {
  using load = await startLoad();
  await load.scenario.acceptMore(100);
  const lose = `create function broker.lose() returns trigger language plpgsql as 'begin return null; end'`;
  await query(databaseUrl, lose);
  await query(
    databaseUrl,
    'create trigger lose before insert on broker.queue for each row when (random() < 0.2) execute function broker.lose()',
  );
  await load.scenario.acceptMore(200);
  await query(databaseUrl, 'drop function broker.lose() cascade');
  const report = await load.finish();
  console.log(describeReport(report));
  expect(report.lost).toBeGreaterThan(0);
  expect(report.failed).toEqual([]);
});
