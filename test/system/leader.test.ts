/*
 * Goal: whatever happens to the reaper that leads, another leads within 5 seconds, and two never share a term.
 * Method: real reaper processes on one database; the leader is killed, stopped and continued, drained, or its database is
 * taken away by a proxy. Terms are read from the leader's row and from the processes' log lines.
 */
import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createDatabase, type Database, type DatabaseHandle } from '#db/client.ts';
import { type BrokerProcess, Cluster } from '#test/support/cluster.ts';
import { cloneDatabase } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';

const failoverMs = 5000;
let database: Awaited<ReturnType<typeof cloneDatabase>>;
let handle: DatabaseHandle;
let db: Database;

beforeAll(async () => {
  database = await cloneDatabase();
  handle = createDatabase({
    url: database.url,
    applicationName: 'broker-test',
    poolMax: 2,
    statementTimeoutMs: 5000,
  });
  db = handle.db;
});
afterAll(async () => {
  await handle.close();
  await database[Symbol.asyncDispose]();
});

interface LeaderNow {
  readonly holder: string;
  readonly term: number;
}

/** Who leads now, by the database; one whose heartbeat is old does not. */
async function leaderNow(): Promise<LeaderNow> {
  const { rows } = await sql<{ holder: string | null; term: string; is_fresh: boolean }>`
    select holder, term, heartbeat_at > clock_timestamp() - interval '3 seconds' as is_fresh from broker.leader`.execute(
    db,
  );
  const row = rows[0];
  if (row?.holder == null || !row.is_fresh) throw new Error('nobody leads');
  return { holder: row.holder, term: Number(row.term) };
}

async function untilTermAfter(term: number): Promise<LeaderNow & { readonly tookMs: number }> {
  const began = performance.now();
  return eventually(
    async () => {
      const now = await leaderNow();
      if (now.term <= term) throw new Error(`${now.holder} still leads in term ${now.term}`);
      return { ...now, tookMs: performance.now() - began };
    },
    { timeoutMs: 15_000, intervalMs: 10 },
  );
}

function processOf(cluster: Cluster, { holder }: LeaderNow): BrokerProcess {
  const found = cluster.reapers.find((reaper) => reaper.name === holder);
  if (found === undefined) throw new Error(`${holder} is none of ours`);
  return found;
}

/** The terms in which processes said that they lead. */
function ledTerms(cluster: Cluster): string[] {
  return cluster.reapers.flatMap((reaper) =>
    reaper.logs.filter((line) => line.msg === 'leads').map((line) => String(line['term'])),
  );
}

describe('of three reapers', () => {
  test('another leads within 5 s when the leader is killed, stopped or drained; no term is shared; one that was stopped follows', async () => {
    await using cluster = await Cluster.start({ databaseUrl: database.url, apis: 0, reapers: 3 });
    let leader: LeaderNow = await untilTermAfter(0);

    const killed = processOf(cluster, leader);
    await killed.kill('SIGKILL');
    const afterKill = await untilTermAfter(leader.term);
    console.log(`killed: another leads after ${Math.round(afterKill.tookMs)} ms`);
    expect(afterKill.tookMs).toBeLessThan(failoverMs);
    leader = afterKill;

    const stopped = processOf(cluster, leader);
    stopped.pause();
    const afterStop = await untilTermAfter(leader.term);
    console.log(`stopped: another leads after ${Math.round(afterStop.tookMs)} ms`);
    expect(afterStop.tookMs).toBeLessThan(failoverMs);
    expect(afterStop.holder).not.toBe(stopped.name);
    stopped.continue();
    await eventually(() =>
      expect(stopped.logs.findLast((line) => line.msg?.startsWith('leads'))).toMatchObject({
        msg: 'leads no longer',
        term: String(leader.term),
      }),
    );
    expect(await leaderNow()).toMatchObject({ holder: afterStop.holder, term: afterStop.term });
    leader = afterStop;

    const drained = processOf(cluster, leader);
    expect(await drained.stop()).toEqual({ code: 0, signal: null });
    const afterDrain = await untilTermAfter(leader.term);
    console.log(`drained: another leads after ${Math.round(afterDrain.tookMs)} ms`);
    expect(afterDrain.tookMs).toBeLessThan(2000);
    expect(afterDrain.holder).toBe(stopped.name);

    const terms = ledTerms(cluster);
    expect(new Set(terms).size).toBe(terms.length);
  });
});

test('a reaper whose database is away lives on, says so once, and leads again when it is back', async () => {
  await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
  await using cluster = await Cluster.start({
    databaseUrl: proxy.through(database.url),
    apis: 0,
    reapers: 1,
  });
  const reaper = cluster.reapers[0]!;
  const lines = (start: string): number =>
    reaper.logs.filter((line) => line.msg?.startsWith(start) === true).length;
  await eventually(() => expect(lines('leads')).toBe(1));
  const before = await leaderNow();

  proxy.refuse();
  await eventually(() => expect(lines('the database is away')).toBe(1));
  // long enough for several rounds of backoff
  await eventually(async () => {
    const answer = await fetch(`${reaper.url}/api/health`);
    expect(answer.status).toBe(503);
    expect(await reaper.residentMb()).toBeGreaterThan(0);
  });
  expect((await fetch(`${reaper.url}/api/health/live`)).status).toBe(204);
  proxy.restore();
  const after = await untilTermAfter(before.term);
  expect(after.holder).toBe(reaper.name);
  await eventually(() => expect(lines('the database is back')).toBe(1));

  // half-open: nothing comes, nothing is refused
  proxy.blackhole();
  await eventually(() => expect(lines('leads no longer')).toBe(2), { timeoutMs: 10_000 });
  proxy.restore();
  await untilTermAfter(after.term);
  await reaper.ready();
  expect(lines('the database is away')).toBeLessThanOrEqual(2);
  expect(reaper.isRunning).toBe(true);
});
