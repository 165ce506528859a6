/**
 * Goal: what is changed through one API replica holds on the others within a second, although they keep API keys, topics and
 * subscriptions in memory.
 *
 * Method: two API processes on one database. Each change is made on the first; before it the second has used, and so
 * remembers, what is changed. Then the second is asked until it acts by the change, 3 s at most. All of it once more while
 * the connection over which the second hears of changes is terminated just before each change.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { Cluster } from '#test/support/cluster.ts';
import { cloneDatabase, query } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { codeOf, HttpClient } from '#test/support/http-client.ts';

/** Three times what is promised. */
const noticedMs = 3000;

const resources = new AsyncDisposableStack();
let cluster: Cluster;
let admin: HttpClient;
let databaseUrl = '';
/** The longest that the second replica took. */
const slowest = { heard: 0, deafened: 0 };
/** What was asked of it before. */
let lastLook: () => Promise<unknown> = async () => undefined;

beforeAll(async () => {
  const database = resources.use(await cloneDatabase());
  databaseUrl = database.url;
  cluster = resources.use(await Cluster.start({ databaseUrl, apis: 2, reapers: 0 }));
  admin = resources.use(new HttpClient(cluster.adminKey));
});

afterAll(async () => {
  console.log(`the second replica acted by a change after ${JSON.stringify(slowest)} ms at most`);
  await resources.disposeAsync();
});

describe.each(['heard', 'deafened'] as const)('changes while LISTEN is %s', (listening) => {
  test('a new API key opens, and a removed one opens nothing', async () => {
    const body = { name: 'of the test', scopes: ['consume'] };
    const { id, key } = await change<{ id: string; key: string }>('POST', '/api-keys', body);
    using theirs = new HttpClient(key);
    const open = async (): Promise<number> => {
      const url = `${second()}/subscriptions/none/receive`;
      return (await theirs.send(url, { body: { wait_seconds: 0 } })).status;
    };
    await noticed(async () => expect(await open()).toBe(404));
    await change('DELETE', `/api-keys/${id}`);
    await noticed(async () => expect(await open()).toBe(401));
  });

  test('a topic that is made takes events, removed none, made again the events of the new one', async () => {
    const topic = `orders-${listening}`;
    const events = `${second()}/topics/${topic}/events`;
    const publish = async (): Promise<string> =>
      codeOf(await admin.send(events, { body: { type: 'a' } }));
    await noticed(async () => expect(await publish()).toBe('topic_not_found'));
    await change('PUT', `/topics/${topic}`, {});
    await noticed(async () => expect(await publish()).toBe('http_202'));
    await change('DELETE', `/topics/${topic}`);
    await noticed(async () => expect(await publish()).toBe('topic_not_found'));

    await change('PUT', `/topics/${topic}`, {});
    const { id } = await noticed(async () =>
      admin.call<{ id: string }>(events, { body: { type: 'a' } }),
    );
    const seen = await admin.send(`${first()}/topics/${topic}/events/${id}`);
    expect(seen.status, 'the event is in the topic that there is now').toBe(200);
  });

  test('max_backlog and other settings of a topic that are changed hold', async () => {
    const topic = `settings-${listening}`;
    await change('PUT', `/topics/${topic}`, { deduplicate_event_ids: true });
    const events = `${second()}/topics/${topic}/events`;
    const publishTwice = async (id: string): Promise<boolean> => {
      const body = { id, type: 'a', source: '/cache' };
      await admin.call(events, { body });
      return (await admin.call<{ duplicate: boolean }>(events, { body })).duplicate;
    };
    let turn = 0;
    await noticed(async () => expect(await publishTwice(`before-${(turn += 1)}`)).toBe(true));
    await change('PUT', `/topics/${topic}`, { deduplicate_event_ids: false });
    await noticed(async () => expect(await publishTwice(`after-${(turn += 1)}`)).toBe(false));
  });

  test('a subscription that is made hands out, removed nothing, made again what its new topic has', async () => {
    const name = `billing-${listening}`;
    const [before, after] = [`before-${listening}`, `after-${listening}`];
    for (const topic of [before, after]) await change('PUT', `/topics/${topic}`, {});
    const receive = async (): Promise<string> => {
      const url = `${second()}/subscriptions/${name}/receive`;
      const answer = await admin.send(url, { body: { wait_seconds: 0 } });
      const messages = (answer.json as { messages?: { event: { subject: string } }[] }).messages;
      return messages?.map(({ event }) => event.subject).join() ?? codeOf(answer);
    };
    await noticed(async () => expect(await receive()).toBe('subscription_not_found'));
    await change('PUT', `/subscriptions/${name}`, { topic: before, type: 'pull' });
    await noticed(async () => expect(await receive()).toBe(''));
    await change('DELETE', `/subscriptions/${name}`);
    await noticed(async () => expect(await receive()).toBe('subscription_not_found'));

    await change('PUT', `/subscriptions/${name}`, { topic: after, type: 'pull' });
    const body = { type: 'a', subject: 'of the new topic' };
    await admin.call(`${first()}/topics/${after}/events`, { body });
    await noticed(async () => expect(await receive()).toBe('of the new topic'));
  });

  /** Makes a change through the first replica, while the second may hear of it or not. */
  async function change<Body>(method: string, path: string, body?: unknown): Promise<Body> {
    if (listening === 'deafened') {
      await deafen();
      // It dropped all that it knew when it began to listen, after the last time; it listens again in some 50 ms.
      await lastLook().catch(() => undefined);
    }
    return admin.call<Body>(`${first()}${path}`, { method, body });
  }

  /** Repeats an assertion about the second replica. */
  async function noticed<Result>(look: () => Promise<Result>): Promise<Awaited<Result>> {
    lastLook = look;
    const startedAt = performance.now();
    const result = await eventually(look, {
      timeoutMs: noticedMs,
      intervalMs: 5,
      what: 'the change',
    });
    slowest[listening] = Math.max(slowest[listening], Math.round(performance.now() - startedAt));
    return result;
  }
});

function first(): string {
  return `${cluster.apis[0]?.url}/api/v1`;
}

function second(): string {
  return `${cluster.apis[1]?.url}/api/v1`;
}

/** Ends the session that listens for the second replica. */
async function deafen(): Promise<void> {
  await eventually(async () => {
    const ended = await query(
      databaseUrl,
      `select pg_terminate_backend(pid) from pg_stat_activity
        where application_name = 'broker-api-api-2' and (query like 'listen %' or query = 'select 1')`,
    );
    expect(ended.length).toBeGreaterThan(0);
  });
}
