/**
 * Goal: an API process that is told to stop ends what it has begun, and what it has promised outlives it; one that is killed
 * takes nothing with it; publishing, receive and ack need no reaper.
 *
 * Method: SIGTERM while publishers, consumers and idle long polls are at work, with leases that outlast the test, so that a
 * lease that was handed out and is refused, or one that was never handed out and is held, shows.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, test } from 'vitest';

import { encodeLeaseId } from '#db/lease.ts';
import { Cluster } from '#test/support/cluster.ts';
import { CrashPostgres } from '#test/support/crash-postgres.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { HttpClient } from '#test/support/http-client.ts';
import { describeFindings } from '#test/support/ledger-check.ts';
import type { Load } from '#test/support/ledger-load.ts';
import { Scenario } from '#test/support/ledger-scenario.ts';
import type { Delivery, Operation } from '#test/support/ledger.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';

const shutdownMs = 10_000;
/** No lease runs out while a test runs. */
const leaseSeconds = 600;

test('SIGTERM under load: every answer is complete, nothing is lost, no lease is left to nobody', async () => {
  await using database = await cloneDatabase();
  const env = { SHUTDOWN_TIMEOUT_MS: String(shutdownMs) };
  await using cluster = await Cluster.start({ databaseUrl: database.url, reapers: 0, env });
  const api = cluster.apis[0]!;
  using scenario = await Scenario.open(cluster, { databaseUrl: database.url });
  using idle = new HttpClient(cluster.adminKey);
  await idle.call(`${api.url}/api/v1/topics/quiet`, { method: 'PUT', body: {} });
  const quiet = `${api.url}/api/v1/subscriptions/quiet`;
  await idle.call(quiet, { method: 'PUT', body: { topic: 'quiet', type: 'pull' } });
  const load = scenario.startLoad({ leaseSeconds, overrunShare: 0, waitSeconds: 5 });
  const polls = Array.from({ length: 20 }, async () =>
    idle.send(`${quiet}/receive`, { body: { wait_seconds: 20 }, timeoutMs: 30_000 }),
  );
  await scenario.acceptMore(500);

  const toldAt = performance.now();
  const exit = await api.kill('SIGTERM');
  const tookMs = performance.now() - toldAt;
  const exitedAt = performance.now();
  const answers = await Promise.all(polls);
  await load.stopConsuming();
  const { ledger } = scenario;
  const operations = [...ledger.publishes, ...ledger.receives, ...ledger.settles];
  const unanswered = operations.filter(({ at, outcome }) => at < toldAt && outcome === 'unknown');
  const late = operations.filter(
    ({ at, outcome }) => at >= toldAt && at < exitedAt && outcome === 'unknown',
  );
  console.log(
    `drained in ${tookMs.toFixed()} ms; ${JSON.stringify(Object.fromEntries(scenario.client.codes))}; ` +
      `${late.length} requests on connections that were being closed`,
  );
  expect(exit).toEqual({ code: 0, signal: null });
  expect(tookMs).toBeLessThan(shutdownMs);
  expect(answers.map(({ status, json }) => [status, json])).toEqual(
    answers.map(() => [200, { messages: [] }]),
  );
  expect(unanswered.map(({ code }) => code)).toEqual([]);
  await expectNothingStored(scenario, late);
  await expectLeasesToBeKnown(scenario);

  await api.start();
  await api.ready();
  // Those with a key repeat what was not answered until it is.
  await load.stopPublishing();
  await ackWhatIsHeld(scenario, api.url);
  await drainAndCheck(
    scenario,
    scenario.startLoad({ leaseSeconds, overrunShare: 0, publishers: 0 }),
  );
});

test('regression: a connection that never sends a request does not hold up the end', async () => {
  await using database = await cloneDatabase();
  const env = { SHUTDOWN_TIMEOUT_MS: String(shutdownMs) };
  await using cluster = await Cluster.start({ databaseUrl: database.url, reapers: 0, env });
  const api = cluster.apis[0]!;
  const silent = connect(Number(new URL(api.url).port), '127.0.0.1');
  await once(silent, 'connect');
  const toldAt = performance.now();
  expect(await api.kill('SIGTERM')).toEqual({ code: 0, signal: null });
  // it is given a second to begin; a drain that waits for it takes most of the shutdown's time
  expect(performance.now() - toldAt).toBeLessThan(shutdownMs / 2);
});

test('a second SIGTERM ends a shutdown that waits for a silent database', async () => {
  await using postgres = await CrashPostgres.start();
  await using proxy = await startTcpProxy({ port: postgres.port });
  const databaseUrl = proxy.through(postgres.url);
  await using cluster = await Cluster.start({ databaseUrl, reapers: 0 });
  const api = cluster.apis[0]!;
  using http = new HttpClient(cluster.adminKey);
  const topic = `${api.url}/api/v1/topics/orders`;
  await http.call(topic, { method: 'PUT', body: {} });
  await http.call(`${topic}/events`, { body: { type: 'a' } });
  proxy.blackhole();
  const waiting = http
    .send(`${topic}/events`, { body: { type: 'a' } })
    .catch((error: unknown) => error);
  await eventually(async () => {
    const { text } = await http.send(`${api.url}/api/metrics`);
    expect(text).toMatch(/^broker_publish_buffer_events(\{.*\})? 1$/m);
  });

  api.signal('SIGTERM');
  await eventually(() => expect(api.logs.map(({ msg }) => msg)).toContain('stopping'));
  // A second one that follows at once counts as the same.
  const ended = api.exited;
  await eventually(async () => {
    api.signal('SIGTERM');
    expect(api.isRunning).toBe(false);
  });
  expect(await ended).toEqual({ code: 143, signal: null });
  await waiting;
});

test('without a reaper publishing, receive and ack go on', async () => {
  await using database = await cloneDatabase();
  await using cluster = await Cluster.start({ databaseUrl: database.url, reapers: 0 });
  using scenario = await Scenario.open(cluster, { databaseUrl: database.url });
  const load = scenario.startLoad({ overrunShare: 0 });
  await scenario.acceptMore(1000);
  await drainAndCheck(scenario, load);
});

test('one of two API processes is killed, the other goes on', async () => {
  await using database = await cloneDatabase();
  await using cluster = await Cluster.start({ databaseUrl: database.url, apis: 2 });
  using scenario = await Scenario.open(cluster, { databaseUrl: database.url });
  const load = scenario.startLoad();
  await scenario.acceptMore(500);
  scenario.ledger.disrupt();
  await cluster.apis[0]!.kill('SIGKILL');
  await scenario.acceptMore(1000);
  await drainAndCheck(scenario, load);
});

async function drainAndCheck(scenario: Scenario, load: Load): Promise<void> {
  await scenario.drain(load);
  const findings = await scenario.findings();
  console.log(describeFindings(findings));
  expect(findings.violations.length, describeFindings(findings)).toBe(0);
}

/** A request that came too late for an answer was not carried out either. */
async function expectNothingStored(scenario: Scenario, late: readonly Operation[]): Promise<void> {
  const tags = late.flatMap((operation) => ('tags' in operation ? operation.tags : []));
  const rows = await scenario.sql(
    `select data ->> 'tag' as tag from broker.event where data ->> 'tag' = any ($1)`,
    [tags],
  );
  expect(rows).toEqual([]);
}

interface LeasedRow {
  readonly topic_id: number;
  readonly subscription_id: number;
  readonly retention_class: number;
  readonly publish_id: string;
  readonly entry_id: string;
  readonly generation: number;
  readonly ordinals: readonly number[];
}

/** Each event that the database holds as leased was handed out to one of our clients. */
async function expectLeasesToBeKnown(scenario: Scenario): Promise<void> {
  const rows = await scenario.sql<LeasedRow>(
    `select topic_id, subscription_id, retention_class, publish_id::text, id::text as entry_id, generation, ordinals
       from broker.queue where lease_expires_at is not null`,
  );
  const held = rows.flatMap((row) =>
    row.ordinals.map((ordinal) => encodeLeaseId({ ...row, ordinal })),
  );
  const handedOut = new Set(scenario.ledger.deliveries.map(({ leaseId }) => leaseId));
  expect(held.filter((leaseId) => !handedOut.has(leaseId))).toEqual([]);
}

/** Acks every lease that is not settled for certain; the check of the ledger finds one that is refused. */
async function ackWhatIsHeld(scenario: Scenario, url: string): Promise<void> {
  const { deliveries, settles } = scenario.ledger;
  const settled = new Set(settles.flatMap(({ succeeded }) => [...succeeded]));
  const held = deliveries.filter(({ leaseId }) => !settled.has(leaseId));
  console.log(`${held.length} leases were held when the process had ended`);
  const bySubscription = Map.groupBy(held, ({ subscription }) => subscription);
  for (const theirs of bySubscription.values()) {
    for (const some of chunks(theirs, 1000)) await scenario.client.ack(url, some);
  }
}

function chunks(deliveries: readonly Delivery[], size: number): Delivery[][] {
  const count = Math.ceil(deliveries.length / size);
  return Array.from({ length: count }, (_, i) => deliveries.slice(i * size, (i + 1) * size));
}
