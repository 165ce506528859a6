/**
 * Goal: what happens to hosts of the stack loses no event, is over in bounded time, and fails no more requests than those of which nobody can know
 * whether they did their work.
 *
 * Method: a Swarm of three hosts, PostgreSQL on host 1, which is also the manager; a constant load through nginx on all of them with a ledger. Host 3 is
 * drained, loses its power, is cut off without a word; then host 1 is cut off, so that nobody reaches the database.
 */
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

import { type Lab, startLab } from './lab.ts';
import type { LoadReport } from './load-report.ts';
import { Measured } from './measured.ts';
import { Stack } from './stack.ts';

const engine = inject('docker');
const minutes = (n: number): number => n * 60_000;
/** How long clients notice a dead host at most, in milliseconds; asserted at three times as much. */
const hostGoneMs = 20_000;
const refusedMs = 15_000;
const unavailable = new Set(['upstream_unavailable']);

describe.skipIf(engine.missingHosts !== undefined)('failures under the stack', () => {
  let lab: Lab;
  let stack: Stack;
  const measured = new Measured(() => stack);

  beforeAll(async () => {
    lab = await startLab({ managers: 3 });
    stack = await Stack.prepare(lab);
  }, minutes(10));
  afterAll(async () => {
    console.log(String(measured));
    await lab[Symbol.asyncDispose]();
  }, minutes(2));

  /**
   * Of what nginx of a living host answered: nobody repeats these once they were sent, as the host may have done the work before it died. What was under
   * way to the dead host itself gets no answer from anybody.
   */
  function expectOnlyWhatNobodyKnows({ failed }: LoadReport): void {
    const answered = failed.filter(({ code }) => /^[a-z_]+$/.test(code));
    const repeatable = answered.filter(({ kind }) => kind !== 'plain' && kind !== 'receive');
    expect(repeatable).toEqual([]);
  }

  test('the stack comes up by docker stack deploy alone: each part waits for what it needs', async () => {
    await stack.deployByHand();
    expect(await stack.command('smoke')).toContain('Smoke test passed.');
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
    // From here on with the commands: secrets get the names of their content, so that everything is replaced once.
    await stack.command('deploy', '--yes');
  });

  test('a host is drained for maintenance, and comes back', async () => {
    const report = await measured.under('host drained, and back', async (load) => {
      await lab.docker(1, 'node', 'update', '--availability', 'drain', 'node3');
      await stack.settled();
      await load.scenario.acceptMore(100);
      await lab.docker(1, 'node', 'update', '--availability', 'active', 'node3');
      await stack.settled();
      // the tasks do not come back by themselves
      await stack.command('deploy', '--yes', '--no-smoke');
    });
    expect(report.failed).toEqual([]);
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
  });

  test('a host loses its power, and boots again', async () => {
    let cutAt = 0;
    const report = await measured.under('power of a host cut', async (load) => {
      await lab.kill(3);
      cutAt = load.now;
      await lab.untilNode(3, 'Down');
      await stack.settled();
      await load.scenario.acceptMore(300);
      return cutAt;
    });
    expectOnlyWhatNobodyKnows(report);
    expect(report.recoveryMs(cutAt)).toBeLessThan(3 * hostGoneMs);
    const back = await measured.under('that host boots', async () => {
      await lab.start(3);
      await lab.untilNode(3, 'Ready');
      await stack.settled();
    });
    expect(back.failed).toEqual([]);
  });

  test('a host is cut off without a word, and comes back', async () => {
    let cutAt = 0;
    const report = await measured.under('host cut off', async (load) => {
      await lab.cut(3);
      cutAt = load.now;
      await lab.untilNode(3, 'Down');
      await stack.settled();
      await load.scenario.acceptMore(300);
      return cutAt;
    });
    expectOnlyWhatNobodyKnows(report);
    expect(report.recoveryMs(cutAt)).toBeLessThan(3 * hostGoneMs);
    let healedAt = 0;
    const back = await measured.under('that host is healed', async (load) => {
      healedAt = load.now;
      await lab.heal(3);
      await lab.untilNode(3, 'Ready');
      await stack.settled();
      await stack.command('deploy', '--yes', '--no-smoke');
    });
    // Clients reach its nginx before that reaches the replicas again: it says so, with 502, until the networks of the stack are back.
    expect(new Set(back.failed.map(({ code }) => code)).difference(unavailable)).toEqual(new Set());
    const ended = back.failed.map(({ doneAt }) => doneAt - healedAt);
    expect(Math.max(0, ...ended)).toBeLessThan(3 * hostGoneMs);
    expect(await stack.spread('api')).toEqual([1, 1, 1]);
  });

  test('the host of the database is cut off: publishes are refused in bounded time, and nothing is lost', async () => {
    let cutAt = 0;
    const report = await measured.under('host of the database cut off for 45 s', async (load) => {
      await lab.cut(1);
      cutAt = load.now;
      const failedBefore = load.failedCount;
      await expect.poll(() => load.now - cutAt, { timeout: 90_000 }).toBeGreaterThan(45_000);
      expect(load.failedCount).toBeGreaterThan(failedBefore);
      await lab.heal(1);
      const healedAt = load.now;
      await lab.untilNode(1, 'Ready');
      return healedAt;
    });
    const longest = Math.max(...report.failed.map(({ at, doneAt }) => doneAt - at));
    console.log(
      `the slowest refusal took ${(longest / 1000).toFixed(1)} s (${refusedMs / 1000} s are meant)`,
    );
    expect(longest).toBeLessThan(3 * refusedMs);
    // nginx goes on as long as it lasts, and its hosts say what is wrong
    const refused = report.failed.filter(({ code }) => code === 'database_unavailable');
    expect(refused.some(({ at }) => at > cutAt + 35_000)).toBe(true);
    expect(refused.length).toBeGreaterThan(report.failed.length / 2);
  });
});
