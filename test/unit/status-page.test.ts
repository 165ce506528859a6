import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import type { SampledSubscription } from '#db/backlog-extremes.ts';
import type { BrokerStatus, ProcessStatus } from '#db/stats.ts';
import type { Status } from '../../apps/api/schemas/status.ts';
import { pagePolicy, renderProblemPage, renderStatusPage } from '../../apps/api/status-page.ts';
import { ageOf, type Extremes, statusProblems } from '../../apps/api/status-problems.ts';

const aProcess = (overrides: Partial<ProcessStatus> = {}): ProcessStatus => ({
  instance: 'api-1',
  service: 'api',
  version: '1.0.0',
  host: 'h',
  pid: 7,
  started_at: '2026-11-24T10:00:00Z',
  heartbeat_age_seconds: 0.4,
  state: 'alive',
  ...overrides,
});

const reaper = aProcess({ instance: 'reaper-1', service: 'reaper' });
const worker = aProcess({ instance: 'worker-1.4', service: 'worker' });

const healthy: BrokerStatus = {
  at: '2026-11-24T12:00:00Z',
  server_version: '18.1',
  schema_version: '0005_push',
  processes: [aProcess(), reaper, worker],
  leader: {
    holder: 'reaper-1',
    term: '3',
    elected_at: '2026-11-24T10:00:01Z',
    heartbeat_age_seconds: 0.2,
  },
  backlog: {
    waiting_events: 12,
    leased_events: 3,
    dead_letters: 0,
    oldest_waiting_seconds: 2,
    sample_age_seconds: 0.9,
  },
};

const aSample = (overrides: Partial<SampledSubscription> = {}): SampledSubscription => ({
  topic: 'orders',
  subscription: 'billing',
  type: 'pull',
  state: 'active',
  waiting_events: 12,
  leased_events: 3,
  dead_letters: 0,
  oldest_waiting_seconds: 2,
  max_backlog: 100,
  ...overrides,
});

const none = { total: 0, first: [] };
const extremes = (found: Partial<Extremes> = {}): Extremes => ({
  most_waiting: none,
  full: none,
  late: none,
  push_due: none,
  halted: none,
  dead: none,
  ...found,
});

const one = (overrides: Partial<SampledSubscription>) => ({
  total: 1,
  first: [aSample(overrides)],
});

const nobody = { holder: null, term: '3', elected_at: null, heartbeat_age_seconds: null };

describe('what is wrong', () => {
  test('nothing, where all is well', () => {
    expect(statusProblems(healthy, extremes())).toEqual([]);
  });

  test.each<[string, Partial<BrokerStatus>, Partial<Extremes>, string]>([
    [
      'no_leader',
      { leader: nobody },
      {},
      'No reaper leads: leases that ran out are not taken back, redrives do not run, and no partitions are made.',
    ],
    [
      'no_leader',
      { leader: nobody, processes: [worker] },
      {},
      'No reaper runs: leases that ran out are not taken back, redrives do not run, and no partitions are made.',
    ],
    [
      'no_leader',
      { leader: { ...healthy.leader, heartbeat_age_seconds: 42 } },
      {},
      'The leader reaper-1 has not been heard of for 42 s: leases that ran out are not taken back, redrives do not run, and no partitions are made.',
    ],
    [
      'topic_full',
      {},
      { full: one({ waiting_events: 100 }) },
      'The topic orders is full: producers get 503. billing has 100 events waiting, 100 may.',
    ],
    [
      'no_worker',
      { processes: [reaper, { ...worker, state: 'gone' }] },
      { push_due: { total: 3, first: [aSample({ subscription: 'mailer', type: 'push' })] } },
      'No worker runs: nothing is pushed to mailer (topic orders), nor to 2 more.',
    ],
    [
      'sample_stale',
      { backlog: { ...healthy.backlog, sample_age_seconds: 180 } },
      {},
      'The backlog was last sampled 3 min ago: its numbers are of then.',
    ],
    [
      'sample_stale',
      { backlog: { ...healthy.backlog, sample_age_seconds: null } },
      {},
      'The backlog was never sampled: all of its numbers are missing.',
    ],
    [
      'oldest_waiting_late',
      {},
      { late: one({ oldest_waiting_seconds: 7300 }) },
      'The oldest event of billing (topic orders) has been due for 2 h: nobody receives, or too slowly.',
    ],
    [
      'subscription_halted',
      {},
      { halted: one({ state: 'paused', waiting_events: 1 }) },
      'billing (topic orders) is paused, and 1 event waits.',
    ],
    [
      'process_silent',
      {
        processes: [
          ...healthy.processes,
          { ...worker, instance: 'w.9', state: 'silent', heartbeat_age_seconds: 12 },
        ],
      },
      {},
      'The worker w.9 has not been heard of for 12 s: it hangs, is cut off, or has ended without a word.',
    ],
    [
      'versions_differ',
      {
        processes: [aProcess(), aProcess({ instance: 'api-2', version: '1.1.0' }), reaper, worker],
      },
      {},
      'Processes of several versions run: 1.0.0 (3), 1.1.0 (1). Is an update under way?',
    ],
    [
      'dead_letters',
      {},
      { dead: one({ dead_letters: 101 }) },
      'billing (topic orders) has 101 dead letters.',
    ],
  ])('%s', (code, status, found, message) => {
    expect(statusProblems({ ...healthy, ...status }, extremes(found))).toContainEqual({
      code,
      message,
    });
  });

  test('what runs is not missed: a version of a process that is gone, a worker that pushes', () => {
    const old = aProcess({ instance: 'old', version: '0.9.0', state: 'gone', service: 'worker' });
    const status = { ...healthy, processes: [...healthy.processes, old] };
    const codes = statusProblems(status, extremes({ push_due: one({ type: 'push' }) })).map(
      ({ code }) => code,
    );
    expect(codes).toEqual(['process_silent']);
  });

  test('the worst comes first, and of many a few are named', () => {
    const first = Array.from({ length: 20 }, (_, n) => aSample({ subscription: `s-${n}` }));
    const problems = statusProblems(
      { ...healthy, leader: nobody },
      extremes({ dead: { total: 10_000, first }, halted: one({ state: 'disabled' }) }),
    );
    expect(problems.map(({ code }) => code)).toEqual([
      'no_leader',
      'subscription_halted',
      ...Array.from({ length: 6 }, () => 'dead_letters'),
    ]);
    expect(problems.at(-1)?.message).toBe('9995 more subscriptions have dead letters.');
  });

  test.each([
    [0.04, '0 s'],
    [9.44, '9.4 s'],
    [119, '119 s'],
    [120, '2 min'],
    [7200, '2 h'],
    [172_800, '2 days'],
  ])('%s seconds are %s', (seconds, text) => {
    expect(ageOf(seconds)).toBe(text);
  });
});

describe('the page', () => {
  const status: Status = {
    ...healthy,
    problems: [],
    version: '1.0.0',
    instance: 'api-1',
    processes: [...healthy.processes],
    subscriptions: [aSample()],
    subscriptions_total: 1,
  };

  test('says that nothing is known to be wrong, who leads, who runs and what waits', () => {
    const page = renderStatusPage(status);
    expect(page).toMatch(/^<!doctype html>\n<html lang="en">/);
    expect(page).toContain('<title>Nothing is known to be wrong · Event Broker</title>');
    expect(page).toContain('<h1 class="good">Nothing is known to be wrong</h1>');
    expect(page).toContain('reaper-1 leads in term 3, since 2026-11-24T10:00:01Z.');
    expect(page).toContain(
      '12 events waiting, 3 leased, 0 dead letters; the oldest has been due for 2 s',
    );
    expect(page).toContain('<th scope="row">worker-1.4</th><td>worker</td>');
    expect(page).toContain(
      '<th scope="row">billing</th><td>orders</td><td>pull</td><td>active</td>',
    );
  });

  test('says what is wrong before everything else', () => {
    const problems = [{ code: 'topic_full' as const, message: 'The topic orders is full.' }];
    const page = renderStatusPage({ ...status, problems });
    expect(page).toContain('<title>1 problem · Event Broker</title>');
    expect(page.indexOf('The topic orders is full.')).toBeLessThan(page.indexOf('<p>'));
    expect(page).toContain('<code>topic_full</code>');
  });

  test('what comes from elsewhere is text, wherever it stands', () => {
    const evil = `<img src=x onerror="a()">'&`;
    const page = renderStatusPage({
      ...status,
      instance: evil,
      problems: [{ code: 'dead_letters', message: evil }],
      processes: [aProcess({ instance: evil, host: evil, version: evil })],
      leader: { ...status.leader, holder: evil },
      subscriptions: [aSample({ topic: evil, subscription: evil })],
    });
    expect(page).not.toContain('<img');
    expect(page.split('&lt;img src=x onerror=&quot;a()&quot;&gt;&#39;&amp;')).toHaveLength(9);
    const problem = renderProblemPage({
      title: evil,
      detail: evil,
      code: evil,
      status: 500,
      requestId: evil,
    });
    expect(problem).not.toContain('<img');
  });

  test('is bounded: of many processes and subscriptions it shows some, and says so', () => {
    const processes = Array.from({ length: 5000 }, (_, n) => aProcess({ instance: `p-${n}` }));
    const page = renderStatusPage({ ...status, processes, subscriptions_total: 10_000 });
    expect(page).toContain('Processes (the first 100 of 5000)');
    expect(page).toContain('Subscriptions with most waiting (the first 1 of 10000)');
    expect(page).not.toContain('p-100<');
    expect(page.length).toBeLessThan(50_000);
  });

  test('its policy allows its own style and nothing else', () => {
    const style = /<style>([\s\S]*)<\/style>/.exec(renderStatusPage(status))?.[1] ?? '';
    const hash = createHash('sha256').update(style).digest('base64');
    expect(style).toContain('prefers-color-scheme: dark');
    expect(pagePolicy).toContain(`style-src 'sha256-${hash}'`);
    expect(pagePolicy).toMatch(/^default-src 'none';/);
    expect(pagePolicy).not.toMatch(/unsafe|script|http/);
    expect(renderStatusPage(status)).not.toMatch(/<script|style=|<form|https?:/);
  });

  test('looks again by itself; a refusal does not', () => {
    const problem = { title: 't', code: 'c', requestId: 'r' };
    const refresh = 'http-equiv="refresh"';
    expect(renderStatusPage(status)).toContain(refresh);
    expect(renderProblemPage({ ...problem, status: 503 })).toContain(refresh);
    expect(renderProblemPage({ ...problem, status: 401 })).not.toContain(refresh);
  });
});
