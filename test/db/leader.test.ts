import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { Candidate, type CandidateOptions, type Leadership, type Look } from '#db/leader.ts';
import { reap } from '#db/reap.ts';
import { aSubscription, aTopic, publishMany } from '#test/support/factory.ts';
import { startTcpProxy } from '#test/support/tcp-proxy.ts';
import { claimSome, expireLeases, openVerbDatabase, queueRows } from '#test/support/verbs.ts';
import { eventually } from '../support/eventually.ts';

// Elections are of a whole database, so each test has its own.
let database: Awaited<ReturnType<typeof openVerbDatabase>>;
let db: Database;

beforeEach(async () => {
  await database?.[Symbol.asyncDispose]();
  database = await openVerbDatabase();
  db = database.db;
});
afterAll(async () => database[Symbol.asyncDispose]());

function aCandidate(holder: string, options: Partial<CandidateOptions> = {}): Candidate {
  return new Candidate({
    directUrl: database.url,
    applicationName: `candidate-${holder}`,
    holder,
    statementTimeoutMs: 5000,
    ...options,
  });
}

function leadershipOf(look: Look): Leadership {
  if (look.status !== 'leads') throw new Error(`${look.holder} leads`);
  return look.leadership;
}

async function untilLeads(candidate: Candidate): Promise<Leadership> {
  let leadership: Leadership | undefined;
  await eventually(async () => (leadership = leadershipOf(await candidate.look())), {
    timeoutMs: 10_000,
    intervalMs: 10,
  });
  return leadership!;
}

async function leaderRow() {
  return db.selectFrom('leader').selectAll().executeTakeFirstOrThrow();
}

describe('an election', () => {
  test('makes one leader, and each a term of its own', async () => {
    await using one = aCandidate('one');
    await using two = aCandidate('two');
    const first = leadershipOf(await one.look());
    expect(first.term).toBe('1');
    expect(first.isLeading()).toBe(true);
    expect(await two.look()).toMatchObject({ status: 'follows', holder: 'one', term: '1' });
    expect(await leaderRow()).toMatchObject({ term: '1', holder: 'one' });
    await first.resign();
    expect(first.isLeading()).toBe(false);
    expect(await leaderRow()).toMatchObject({ term: '1', holder: null, backend_pid: null });
    const second = leadershipOf(await two.look());
    expect(second.term).toBe('2');
    await second.resign();
  });

  test('among 8 at once for 20 rounds never gives a term to two', async () => {
    const candidates = Array.from({ length: 8 }, (_, index) => aCandidate(`c${index}`));
    const terms: string[] = [];
    for (let round = 0; round < 20; round += 1) {
      const looks = await Promise.all(candidates.map(async (each) => each.look()));
      const leaders = looks.flatMap((look) => (look.status === 'leads' ? [look.leadership] : []));
      expect(leaders.length).toBeLessThanOrEqual(1);
      for (const leader of leaders) {
        terms.push(leader.term);
        await leader.resign();
      }
    }
    expect(terms.length).toBeGreaterThan(15);
    expect(new Set(terms).size).toBe(terms.length);
    await Promise.all(candidates.map(async (each) => each[Symbol.asyncDispose]()));
  });
});

describe('a leader', () => {
  test('proves that it lives while a duty holds its term', async () => {
    await using candidate = aCandidate('one', { heartbeatMs: 20, staleAfterMs: 1000 });
    await using follower = aCandidate('two', { staleAfterMs: 1000 });
    const leadership = leadershipOf(await candidate.look());
    await db.transaction().execute(async (duty) => {
      await sql`select broker.assert_term(${leadership.term}::bigint)`.execute(duty);
      const before = await leaderRow();
      await eventually(
        async () => {
          const { heartbeat_at } = await leaderRow();
          const aged = Date.parse(heartbeat_at!) - Date.parse(before.heartbeat_at!);
          expect(aged).toBeGreaterThan(1200);
        },
        { timeoutMs: 10_000 },
      );
      expect(leadership.isLeading()).toBe(true);
      expect(await follower.look()).toMatchObject({ status: 'follows', holder: 'one' });
    });
    await leadership.resign();
  });

  test('whose session is ended leads no longer, at once, and another does', async () => {
    await using one = aCandidate('one');
    await using two = aCandidate('two');
    const leadership = leadershipOf(await one.look());
    await sql`select pg_terminate_backend(backend_pid) from broker.leader`.execute(db);
    await eventually(() => expect(leadership.lost.aborted).toBe(true));
    expect(leadership.isLeading()).toBe(false);
    const next = await untilLeads(two);
    expect(next.term).toBe('2');
    await next.resign();
    // and the first is none the worse for it
    const again = await untilLeads(one);
    expect(again.term).toBe('3');
    await again.resign();
  });

  test('whose connection fell silent is removed when its heartbeat is old, and knows it before', async () => {
    await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
    await using one = aCandidate('one', {
      directUrl: proxy.through(database.url),
      heartbeatMs: 100,
      staleAfterMs: 1000,
    });
    await using two = aCandidate('two', { staleAfterMs: 1000 });
    const leadership = leadershipOf(await one.look());
    let lostAt = 0;
    leadership.lost.addEventListener('abort', () => (lostAt = performance.now()));
    proxy.blackhole();
    const began = performance.now();
    const next = await untilLeads(two);
    const tookMs = performance.now() - began;
    expect(next.term).toBe('2');
    expect(lostAt).toBeGreaterThan(0);
    expect(lostAt).toBeLessThan(performance.now());
    expect(lostAt - began).toBeLessThan(tookMs);
    await next.resign();
  });

  test('whose heartbeat is refused steps down', async () => {
    await using one = aCandidate('one', { heartbeatMs: 20 });
    const leadership = leadershipOf(await one.look());
    await sql`update broker.leader set term = term + 1`.execute(db);
    await eventually(() => expect(leadership.lost.aborted).toBe(true));
  });

  test('that was stopped for long knows it before any timer has run', async () => {
    await using one = aCandidate('one', { heartbeatMs: 100, staleAfterMs: 500 });
    const leadership = leadershipOf(await one.look());
    // what SIGSTOP looks like from inside: time has gone by in the middle of a turn
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 600);
    expect(leadership.isLeading()).toBe(false);
    expect(leadership.lost.aborted).toBe(true);
  });

  test('with a young heartbeat is left alone', async () => {
    await using one = aCandidate('one', { heartbeatMs: 50, staleAfterMs: 600 });
    await using two = aCandidate('two', { staleAfterMs: 600 });
    const leadership = leadershipOf(await one.look());
    for (let look = 0; look < 20; look += 1) {
      expect(await two.look()).toMatchObject({ status: 'follows', holder: 'one' });
    }
    expect(leadership.isLeading()).toBe(true);
    await leadership.resign();
  });
});

test('one that took the lock and stopped before it was elected is removed as well', async () => {
  const stuck = new pg.Client({ connectionString: database.url });
  stuck.on('error', () => undefined);
  await stuck.connect();
  await stuck.query('select pg_advisory_lock(7362002)');
  await using two = aCandidate('two', { heartbeatMs: 100, staleAfterMs: 600 });
  const leadership = await untilLeads(two);
  expect(leadership.isLeading()).toBe(true);
  await leadership.resign();
  await stuck.end().catch(() => undefined);
});

describe('a duty and a new term', () => {
  async function overdue(): Promise<{ topicId: number; subscriptionId: number }> {
    const topicId = await aTopic(db);
    const subscriptionId = await aSubscription(db, topicId);
    await publishMany(db, topicId, 10);
    await claimSome(db, topicId, subscriptionId, 10);
    await expireLeases(db, subscriptionId);
    return { topicId, subscriptionId };
  }

  test('of an old term is refused and changes nothing', async () => {
    const { topicId, subscriptionId } = await overdue();
    await using one = aCandidate('one');
    await using two = aCandidate('two');
    const old = leadershipOf(await one.look());
    await old.resign();
    const leadership = leadershipOf(await two.look());
    const before = await queueRows(db, subscriptionId);
    const options = { limit: 100, since: '-infinity' };
    await expect(reap(db, topicId, old.term, options)).rejects.toSatisfy(
      (error) => faultOf(error) === 'term_over',
    );
    expect(await queueRows(db, subscriptionId)).toMatchObject(
      before.map(({ id, generation, lease_expires_at }) => ({ id, generation, lease_expires_at })),
    );
    expect((await reap(db, topicId, leadership.term, options)).expired_events).toBe(10);
    await leadership.resign();
  });

  test('the duty first: the election waits for its end, and then its term is over', async () => {
    const { topicId } = await overdue();
    await using one = aCandidate('one');
    await using two = aCandidate('two');
    const old = leadershipOf(await one.look());
    const began = Promise.withResolvers<number>();
    const mayEnd = Promise.withResolvers<void>();
    const duty = db.transaction().execute(async (trx) => {
      const reaped = await reap(trx, topicId, old.term, { limit: 100, since: '-infinity' });
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(trx);
      began.resolve(rows[0]!.pid);
      await mayEnd.promise;
      return reaped.expired_events;
    });
    const dutyPid = await began.promise;
    await old.resign();
    let isElected = false;
    const election = two.look().finally(() => (isElected = true));
    await eventually(
      async () => {
        const { rows } = await sql<{ blockers: number[] }>`
        select pg_blocking_pids(pid) as blockers from pg_stat_activity
         where application_name = 'candidate-two' and datname = current_database()`.execute(db);
        expect(rows[0]?.blockers).toEqual([dutyPid]);
      },
      { timeoutMs: 5000 },
    );
    expect(isElected).toBe(false);
    mayEnd.resolve();
    expect(await duty).toBe(10);
    const next = leadershipOf(await election);
    expect(next.term).toBe('2');
    expect(next.isLeading()).toBe(true);
    await expect(reap(db, topicId, old.term, { limit: 100, since: '-infinity' })).rejects.toSatisfy(
      (error) => faultOf(error) === 'term_over',
    );
    await next.resign();
  });

  test('the election first: the duty waits for it, and is refused', async () => {
    const { topicId, subscriptionId } = await overdue();
    await using one = aCandidate('one');
    const old = leadershipOf(await one.look());
    const began = Promise.withResolvers<number>();
    const mayEnd = Promise.withResolvers<void>();
    const election = db.transaction().execute(async (trx) => {
      const { rows } = await sql<{ pid: number }>`
        update broker.leader set term = term + 1 returning pg_backend_pid() as pid`.execute(trx);
      began.resolve(rows[0]!.pid);
      await mayEnd.promise;
    });
    const electionPid = await began.promise;
    const name = 'broker-test-duty';
    await using duties = database.another();
    await sql`set application_name = ${sql.raw(`'${name}'`)}`.execute(duties.db);
    const duty = reap(duties.db, topicId, old.term, { limit: 100, since: '-infinity' }).catch(
      faultOf,
    );
    await eventually(async () => {
      const { rows } = await sql<{ blockers: number[] }>`
        select pg_blocking_pids(pid) as blockers from pg_stat_activity
         where application_name = ${name} and datname = current_database()`.execute(db);
      expect(rows[0]?.blockers).toEqual([electionPid]);
    });
    mayEnd.resolve();
    await election;
    expect(await duty).toBe('term_over');
    expect((await queueRows(db, subscriptionId))[0]?.lease_expires_at).not.toBeNull();
    await old.resign();
  });

  test('without the fence an old duty writes after the new term began (deliberate defect)', async () => {
    const { topicId } = await overdue();
    await sql
      .raw(
        `create or replace function broker.assert_term(p_term bigint) returns void language plpgsql as $$
         begin
           if not exists (select from broker.leader where term = p_term) then
             raise exception 'over' using errcode = 'BR001';
           end if;
         end $$`,
      )
      .execute(db);
    await using one = aCandidate('one');
    await using two = aCandidate('two');
    const old = leadershipOf(await one.look());
    await db.transaction().execute(async (trx) => {
      await reap(trx, topicId, old.term, { limit: 100, since: '-infinity' });
      await old.resign();
      // the election does not wait: two terms write at the same time
      const next = leadershipOf(await two.look());
      expect(next.term).toBe('2');
      await next.resign();
    });
  });
});
