// Goal: what deploy/logs.md says of the lines of running processes, and how many there are. Method: real processes, whose output
// is compared with the tables of that page, level by level.
import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { BrokerProcess, LogLine } from '../support/cluster.ts';
import { cloneDatabase } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { PushStage } from '../support/push-stage.ts';

const resources = new AsyncDisposableStack();
let stage: PushStage;
let api: BrokerProcess;
let worker: BrokerProcess;

beforeAll(async () => {
  const { url: databaseUrl } = resources.use(await cloneDatabase());
  stage = resources.use(await PushStage.start({ databaseUrl, workers: 1 }));
  api = stage.cluster.apis[0]!;
  worker = stage.cluster.workers[0]!;
});
afterAll(async () => resources.disposeAsync());

const linesOf = (process: BrokerProcess, msg: string): LogLine[] =>
  process.logs.filter((line) => line.msg === msg);

async function setLevel(service: string, level: string, seconds: number): Promise<void> {
  const body = { service, level, duration_seconds: seconds };
  await stage.http.call(`${stage.api}/log-levels`, { method: 'PUT', body });
}

/** The rows of the table under a heading of the page: a member, and whether every line has it. */
async function documented(heading: string): Promise<Map<string, boolean>> {
  const page = await readFile(new URL('../../deploy/logs.md', import.meta.url), 'utf8');
  const section = page.split('\n## ').find((each) => each.startsWith(heading)) ?? '';
  const rows = [...section.matchAll(/^\| `(\w+)` .*\| ([^|]*?) *\|$/gm)];
  return new Map(rows.map(([, name = '', when]) => [name, when === 'always']));
}

const everywhere = 'level time service instance version msg trace_id span_id'.split(' ');
const membersOf = (line: LogLine): string[] =>
  Object.keys(line).filter((name) => !everywhere.includes(name));

function expectDocumented(lines: readonly LogLine[], table: ReadonlyMap<string, boolean>): void {
  expect([...new Set(lines.flatMap(membersOf))].toSorted()).toEqual([...table.keys()].toSorted());
  const always = [...table].filter(([, isAlways]) => isAlways).map(([name]) => name);
  for (const line of lines) expect(membersOf(line)).toEqual(expect.arrayContaining(always));
}

test('at info nothing that goes well is a line for each event', async () => {
  const endpoint = await stage.hook('quiet');
  await stage.http.call(`${stage.api}/subscriptions/quiet-pull`, {
    method: 'PUT',
    body: { topic: 'quiet', type: 'pull' },
  });
  const before = worker.logs.length;
  for (let n = 0; n < 5; n += 1) await stage.publish('quiet', 10);
  await eventually(() => expect(endpoint.requests).toHaveLength(50));
  const url = `${stage.api}/subscriptions/quiet-pull`;
  const received = await stage.http.call(`${url}/receive`, { body: { max_messages: 50 } });
  const { messages } = received as { messages: { lease_id: string }[] };
  expect(messages).toHaveLength(50);
  await stage.http.call(`${url}/ack`, {
    body: { lease_ids: messages.map((each) => each.lease_id) },
  });
  // written after all of the others
  await stage.http.call(`${stage.api}/topics/quiet`);
  const requests = await eventually(() => {
    const found = linesOf(api, 'request');
    expect(found.at(-1)).toMatchObject({ method: 'GET', path: '/api/v1/topics/quiet' });
    return found;
  });
  expect(requests.map((line) => line['method'])).not.toContain('POST');
  expect(worker.logs).toHaveLength(before);
});

describe('the level', () => {
  test('of a service changes without a restart, is said once, and ends by itself', async () => {
    const endpoint = await stage.hook('loud');
    await setLevel('worker', 'debug', 3);
    await eventually(() => expect(linesOf(worker, 'log level changed')).toHaveLength(1));
    expect(linesOf(worker, 'log level changed')[0]).toMatchObject({
      level: 'info',
      before: 'info',
      after: 'debug',
    });
    const ids = await stage.publish('loud', 7);
    await eventually(() => expect(endpoint.requests).toHaveLength(7));
    const attempts = (): LogLine[] =>
      linesOf(worker, 'attempt').filter((line) => line['subscription'] === 'loud');
    await eventually(() =>
      expect(new Set(attempts().map((line) => line['event_id']))).toEqual(new Set(ids)),
    );
    // one line for each
    expect(attempts()).toHaveLength(7);
    await eventually(() => expect(linesOf(worker, 'log level changed')).toHaveLength(2));
    expect(linesOf(worker, 'log level changed')[1]).toMatchObject({
      before: 'debug',
      after: 'info',
    });
    await stage.publish('loud', 7);
    await eventually(() => expect(endpoint.requests).toHaveLength(14));
    expect(attempts()).toHaveLength(7);
    for (const other of [api, ...stage.cluster.reapers]) {
      expect(linesOf(other, 'log level changed')).toEqual([]);
    }
  });

  test('of all changes with a call in psql, in each process once', async () => {
    const before = linesOf(worker, 'log level changed').length;
    await stage.sql(`select broker.set_log_level('debug', '*', interval '1 minute')`);
    const all = stage.cluster.all;
    await eventually(() => {
      const counts = all.map((each) => linesOf(each, 'log level changed').length);
      expect(counts).toEqual(all.map((each) => (each === worker ? before + 1 : 1)));
    });
  });
});

describe('the canonical lines', () => {
  test('of requests have the members of deploy/logs.md and no others', async () => {
    await setLevel('*', 'debug', 600);
    await eventually(() => expect(linesOf(api, 'log level changed').length).toBeGreaterThan(0));
    await stage.hook('documented');
    await stage.publish('documented', 1);
    await stage.http.send(`${stage.api}/topics/nowhere`);
    await stage.http.call(`${stage.api}/subscriptions/documented-pull`, {
      method: 'PUT',
      body: { topic: 'documented', type: 'pull' },
    });
    const leaving = stage.http.send(`${stage.api}/subscriptions/documented-pull/receive`, {
      body: { wait_seconds: 20 },
      signal: AbortSignal.timeout(300),
    });
    await expect(leaving).rejects.toThrow(/abort|answer/i);
    await eventually(() =>
      expect(linesOf(api, 'request').filter((line) => line['aborted'] === true)).toHaveLength(1),
    );
    expectDocumented(linesOf(api, 'request'), await documented('`request`'));
  });

  test('of attempts too', async () => {
    await stage.hook('documented-answers', {
      topic: 'answers',
      behaviour: ({ number }) =>
        ([{ status: 503, headers: { 'retry-after': '1' } }, { status: 500 }, 'drop'] as const)[
          number - 1
        ] ?? { status: 204 },
    });
    await stage.publish('answers', 4);
    const attempts = (): LogLine[] =>
      linesOf(worker, 'attempt').filter((line) => line['subscription'] === 'documented-answers');
    await eventually(() =>
      expect(new Set(attempts().map((line) => line['outcome']))).toEqual(
        new Set(['acked', 'nacked', 'deferred']),
      ),
    );
    expectDocumented(attempts(), await documented('`attempt`'));
    for (const line of attempts()) {
      expect(line.level).toBe(line['outcome'] === 'acked' ? 'debug' : 'warn');
    }
  });
});

test('an endpoint that refuses everything does not fill the log', async () => {
  await stage.hook('broken', { behaviour: { status: 422 } });
  const from = worker.logs.length;
  await stage.publish('broken', 200);
  await eventually(async () => {
    const metric = 'broker_log_lines_suppressed_total';
    expect(await stage.metric(worker.url, metric)).toBeGreaterThan(20);
  });
  const suppressed = (): LogLine[] =>
    linesOf(worker, 'lines like others were not written').filter(
      (line) => line['of'] === 'attempt',
    );
  await eventually(() => expect(suppressed().length).toBeGreaterThan(0), { timeoutMs: 20_000 });
  expect(suppressed()[0]).toMatchObject({ level: 'warn', window_ms: 10_000 });
  expect(suppressed()[0]?.['suppressed']).toBeGreaterThan(0);
  const until = worker.logs.indexOf(suppressed()[0]!);
  const written = worker.logs
    .slice(from, until)
    .filter((line) => line.msg === 'attempt' && line['outcome'] === 'rejected');
  expect(written.length).toBeLessThanOrEqual(20);
});
