import { sql } from 'kysely';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { DatabaseUnavailable } from '#db/errors.ts';
import { only, openReaperBench, type ReaperBench } from '#test/support/reaper.ts';
import type { Duty } from '../../apps/reaper/term.ts';
import { eventually } from '../support/eventually.ts';

let bench: ReaperBench;
let db: Database;

beforeEach(async () => {
  bench = await openReaperBench();
  db = bench.db;
});
afterEach(async () => bench[Symbol.asyncDispose]());

describe('the leader', () => {
  test('runs the duties, and a follower does not until it leads', async () => {
    const runs: string[] = [];
    const note = (who: string): Record<string, Duty> => ({
      note: {
        intervalMs: 5,
        begin:
          ({ term }) =>
          async () =>
            void runs.push(`${who} ${term}`),
      },
    });
    const one = bench.start('one', note('one'));
    await eventually(() => expect(runs.length).toBeGreaterThan(3));
    const two = bench.start('two', note('two'));
    await eventually(async () => expect(await bench.connectionsOf('two')).toBe(1));
    const before = runs.length;
    await eventually(() => expect(runs.length).toBeGreaterThan(before + 20));
    expect(new Set(runs)).toEqual(new Set(['one 1']));
    await one.stop();
    await eventually(() => expect(runs.at(-1)).toBe('two 2'), { timeoutMs: 5000 });
    expect(runs.lastIndexOf('one 1')).toBeLessThan(runs.indexOf('two 2'));
    expect(one.lines).toEqual(['leads', 'leads no longer']);
    expect(await one.metric('broker_leader')).toMatch(/broker_leader\{.*\} 0/);
    expect(await two.metric('broker_leader')).toMatch(/broker_leader\{.*\} 1/);
    expect(await two.metric('broker_leader_term')).toMatch(/\} 2/);
  });

  test('goes on with the other duties while one hangs and one fails, and says each once', async () => {
    const release = Promise.withResolvers<void>();
    let isBroken = true;
    let failures = 0;
    let runs = 0;
    const reaper = bench.start('one', {
      hangs: { intervalMs: 5, begin: () => async () => release.promise },
      fails: {
        intervalMs: 5,
        begin: () => async () => {
          if (!isBroken) return;
          failures += 1;
          throw new Error('broken');
        },
      },
      works: { intervalMs: 5, begin: () => async () => void (runs += 1) },
    });
    await eventually(() => expect(failures).toBeGreaterThan(2), { timeoutMs: 5000 });
    expect(runs).toBeGreaterThan(10);
    isBroken = false;
    await eventually(() => expect(reaper.lines).toContain('duty works again'), { timeoutMs: 5000 });
    expect(reaper.lines.filter((line) => line.includes('duty fails'))).toHaveLength(1);
    expect(await reaper.metric('broker_duty_duration_seconds')).toMatch(
      /count\{.*duty="fails",result="failed".*\} [3-9]/,
    );
    release.resolve();
  });

  test('says once that the database is away and once that it is back, however many duties notice', async () => {
    let isAway = true;
    const failing: Duty = {
      intervalMs: 5,
      begin: () => async () => {
        if (isAway) throw new DatabaseUnavailable('no connection');
      },
    };
    const reaper = bench.start('one', { a: failing, b: failing, c: failing });
    await eventually(() => expect(reaper.lines).toHaveLength(2), { timeoutMs: 5000 });
    isAway = false;
    await eventually(() => expect(reaper.lines).toHaveLength(3), { timeoutMs: 5000 });
    expect(reaper.lines).toEqual([
      'leads',
      'the database is away, trying again with backoff',
      'the database is back',
    ]);
  });

  test('whose duty is told that the term is over steps down, and may lead again in a new one', async () => {
    const reaper = bench.start('one', only('reap', 'run_jobs', 'purge_deleted'));
    await eventually(async () => expect(await bench.term()).toBe(1));
    await sql`update broker.leader set term = 10`.execute(db);
    await eventually(async () => expect(await bench.term()).toBe(11), { timeoutMs: 10_000 });
    expect(reaper.lines.slice(0, 3)).toEqual(['leads', 'leads no longer', 'leads']);
    expect(await reaper.metric('broker_duty_duration_seconds')).toMatch(/result="fenced"/);
  });

  test('whose session is ended is leader again soon, with nothing left behind', async () => {
    const reaper = bench.start('one', only('sweep', 'reap', 'sample_backlog'));
    await eventually(() => expect(reaper.reaper.isLeading).toBe(true));
    await sql`select pg_terminate_backend(backend_pid) from broker.leader`.execute(db);
    await eventually(async () => expect(await bench.term()).toBe(2), { timeoutMs: 5000 });
    await reaper.stop();
    await eventually(async () => expect(await bench.connectionsOf('one')).toBe(0));
  });
});
