import { sql } from 'kysely';

import type { Database } from '#db/client.ts';

import { freePort } from './cluster.ts';
import { eventually } from './eventually.ts';
import { aSubscription, aTopic } from './factory.ts';
import { codeOf } from './http-client.ts';
import { aPastPartition, publishInto } from './past-partition.ts';
import type { PushStage } from './push-stage.ts';

/** Of a trace that is kept. */
const traceparent = `00-${'a1'.repeat(16)}-${'b2'.repeat(8)}-01`;

interface Message {
  readonly lease_id: string;
}

export interface TrafficOptions {
  /** The database of the cluster, as who may everything. */
  readonly db: Database;
  /** Waits until what has been so far is seen by who watches. */
  readonly seen: () => Promise<void>;
  /** Rejects until who watches has noticed that a duty failed. */
  readonly dutyHasFailed: () => Promise<void>;
}

/**
 * Lets a cluster of two workers and two reapers meet with what one meets with in its life: publishes that are new, repeated and
 * refused; acks, nacks, late acks, leases that run out; endpoints that answer, break and are not there; dead letters and their
 * redrive; a worker that is killed with work in its hands, a duty that fails, events that expire, another leader.
 * What happens every day happens twice: a counter that begins at 1 has no rate before it is 2.
 */
export async function makeTrafficOfAllKinds(
  stage: PushStage,
  { db, seen, dutyHasFailed }: TrafficOptions,
): Promise<void> {
  await seen();
  await stage.hook('mailer', { topic: 'orders' });
  for (const round of ['first', 'second']) {
    await pull(stage);
    await repeat(stage, round);
    await refuse(stage);
    await push(stage);
    await seen();
  }
  await killWorker(stage);
  await failDuty(db, dutyHasFailed);
  await seen();
  await expire(stage, db);
}

async function subscribe(stage: PushStage, name: string, topic: string): Promise<string> {
  const url = `${stage.api}/subscriptions/${name}`;
  await stage.http.call(url, { method: 'PUT', body: { topic, type: 'pull' } });
  return url;
}

async function receive(stage: PushStage, url: string, body: object): Promise<string[]> {
  const all = { max_messages: 3, wait_seconds: 5, ...body };
  const answer = await stage.http.call<{ messages: Message[] }>(`${url}/receive`, { body: all });
  return answer.messages.map((message) => message.lease_id);
}

async function pull(stage: PushStage): Promise<void> {
  const url = await subscribe(stage, 'billing', 'orders');
  const body = Array.from({ length: 6 }, (_, n) => ({ type: 'test', data: { n } }));
  const headers = { traceparent };
  await stage.http.call(`${stage.api}/topics/orders/events`, { body, headers });
  const [acked, nacked, rejected] = await receive(stage, url, {});
  await stage.http.call(`${url}/ack`, { body: { lease_ids: [acked] } });
  const leases = [{ lease_id: nacked }, { lease_id: rejected, dead_letter: true }];
  await stage.http.call(`${url}/nack`, { body: { leases } });
  const late = await receive(stage, url, { visibility_timeout_seconds: 1 });
  await eventually(async () => {
    const rows = await stage.sql(`select from broker.queue where lease_expires_at is not null
      and subscription_id = (select id from broker.subscription where name = 'billing')`);
    if (rows.length > 0) throw new Error('still leased');
  });
  const answer = await stage.http.send(`${url}/ack`, { body: { lease_ids: late } });
  if (answer.status !== 409) throw new Error(`a late ack: ${answer.status} ${answer.text}`);
}

async function repeat(stage: PushStage, key: string): Promise<void> {
  const headers = { 'idempotency-key': `"${key}"` };
  const request = { body: { type: 'test', data: 1 }, headers };
  await stage.http.call(`${stage.api}/topics/orders/events`, request);
  await stage.http.call(`${stage.api}/topics/orders/events`, request);
}

/** The leader samples the backlog each second, so it takes a moment until the topic is full. */
async function refuse(stage: PushStage): Promise<void> {
  const url = `${stage.api}/topics/full`;
  await stage.http.call(url, { method: 'PUT', body: { max_backlog: 1 } });
  await subscribe(stage, 'slow', 'full');
  await eventually(
    async () => {
      const answer = await stage.http.send(`${url}/events`, { body: { type: 'test' } });
      if (codeOf(answer) !== 'backlog_full') throw new Error(answer.text);
    },
    { timeoutMs: 30_000, what: 'back-pressure' },
  );
}

async function push(stage: PushStage): Promise<void> {
  await stage.hook('broken', { behaviour: { status: 500 }, maxAttempts: 2, backoffMs: 50 });
  await stage.http.call(`${stage.api}/topics/away`, { method: 'PUT', body: {} });
  const body = {
    topic: 'away',
    type: 'push',
    push: { endpoint: `http://127.0.0.1:${await freePort()}/` },
    retry_policy: { max_attempts: 2, minimum_backoff_ms: 50, maximum_backoff_ms: 50 },
  };
  await stage.http.call(`${stage.api}/subscriptions/away`, { method: 'PUT', body });
  await stage.publish('broken', 3);
  await stage.publish('away', 3);
  const dlq = `${stage.api}/subscriptions/broken/dlq`;
  await eventually(
    async () => {
      const { items } = await stage.http.call<{ items: unknown[] }>(dlq);
      if (items.length < 3) throw new Error(`${items.length} of 3`);
    },
    { timeoutMs: 30_000, what: 'dead letters' },
  );
  await stage.http.call(`${dlq}/redrive`, { body: {} });
}

async function killWorker(stage: PushStage): Promise<void> {
  const hook = await stage.hook('slow-hook', { behaviour: 'hang' });
  await stage.publish('slow-hook', 4);
  await hook.arrived(4);
  const holders = Object.keys(await stage.leased());
  const worker = holders.find((name) => name.startsWith('worker-'));
  const killed = stage.cluster.workers.find(({ name }) => worker?.startsWith(name));
  if (killed === undefined) throw new Error(`${worker} is no worker of ours`);
  hook.behaviour = { status: 204 };
  await killed.kill();
  await eventually(
    async () => {
      if ((await stage.leased())[worker ?? ''] !== undefined) throw new Error('still leased');
    },
    { timeoutMs: 30_000, what: 'the takeover of its leases' },
  );
  await killed.start();
  await killed.ready();
}

/** A duty waits for a table that somebody has locked until it is given up. */
async function failDuty(db: Database, hasFailed: () => Promise<void>): Promise<void> {
  await db.transaction().execute(async (transaction) => {
    await sql`lock table broker.job in access exclusive mode`.execute(transaction);
    const look = async (): Promise<void> => {
      // or the server takes the transaction for a forgotten one
      await sql`select`.execute(transaction);
      await hasFailed();
    };
    await eventually(look, { timeoutMs: 60_000, what: 'a duty that fails' });
  });
}

/** A new leader begins with the partitions whose time is over, so its predecessor is killed. */
async function expire(stage: PushStage, db: Database): Promise<void> {
  const topicId = await aTopic(db, { name: 'brief', retention_seconds: 3600, retention_class: 1 });
  const subscriptionIds = [await aSubscription(db, topicId, { name: 'asleep' })];
  const past = await aPastPartition(db, 200);
  await publishInto(db, past, { topicId, subscriptionIds, events: 2 });
  const leads = (url: string) => stage.metric(url, 'broker_leader{');
  const led = await Promise.all(stage.cluster.reapers.map(async ({ url }) => leads(url)));
  const leader = stage.cluster.reapers[led.indexOf(1)];
  const follower = stage.cluster.reapers[led.indexOf(0)];
  if (leader === undefined || follower === undefined) throw new Error(`leaders: ${led.join()}`);
  await leader.kill();
  await eventually(
    async () => {
      const expired = await stage.metric(follower.url, 'broker_events_expired_total{');
      if (expired < 2) throw new Error(`${expired} of 2`);
    },
    { timeoutMs: 60_000, what: 'events that expire' },
  );
  await leader.start();
  await leader.ready();
}
