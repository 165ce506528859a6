/**
 * Goal: publishes that come at the same time share a transaction, and a publish of many events is one round trip.
 *
 * Method: one API process on a PostgreSQL of its own, with fsync on. 10,000 single events are published over 64 connections,
 * each of which sends its next one when it has its answer; every transaction of the database counts, those of the start, of
 * notifications and of all that runs beside included (pg_stat_database, once the API has ended and has told all that it did).
 * Then 20 arrays of 500 events: every statement of the API that PostgreSQL has written to its log counts.
 */
import { once } from 'node:events';
import { connect } from 'node:net';

import { expect, test } from 'vitest';

import { Cluster, type BrokerProcess } from '#test/support/cluster.ts';
import { CrashPostgres } from '#test/support/crash-postgres.ts';
import { query } from '#test/support/database.ts';
import { HttpClient } from '#test/support/http-client.ts';

const event = { type: 'order.created', source: '/shop', data: { total: 12 } };

test('10,000 single events from 64 connections take at most 0.1 transactions each', async () => {
  const events = 10_000;
  await using postgres = await CrashPostgres.start();
  const before = await committed(postgres);
  await using cluster = await Cluster.start({ databaseUrl: postgres.url, reapers: 0 });
  const api = cluster.apis[0]!;
  const url = `${api.url}/api/v1`;
  using http = new HttpClient(cluster.adminKey);
  await http.call(`${url}/topics/orders`, { method: 'PUT', body: {} });
  await http.call(`${url}/subscriptions/billing`, {
    method: 'PUT',
    body: { topic: 'orders', type: 'pull' },
  });

  const startedAt = performance.now();
  const request = publishRequest(url, cluster.adminKey);
  let left = events;
  const isLeft = (): boolean => (left -= 1) >= 0;
  await Promise.all(Array.from({ length: 64 }, async () => publishWhile(isLeft, api, request)));
  const seconds = (performance.now() - startedAt) / 1000;
  const metrics = await http.send(`${api.url}/api/metrics`);
  const [, batches] =
    /^broker_publish_batch_events_count(?:\{.*\})? (\d+)$/m.exec(metrics.text) ?? [];
  await api.stop();

  const transactions = (await committed(postgres)) - before;
  console.log(
    `${transactions} transactions for ${events} events, ${(transactions / events).toFixed(3)} each, ${batches} of them publishes; ` +
      `${Math.round(events / seconds)} events/s`,
  );
  const [row] = await query<{ count: number }>(
    postgres.url,
    'select count(*)::int as count from broker.event',
  );
  expect(row?.count).toBe(events);
  expect(transactions / events).toBeLessThanOrEqual(0.1);
});

test('an array of 500 events is one round trip, and nothing else waits with it', async () => {
  const batches = 20;
  await using postgres = await CrashPostgres.start({
    log_statement: 'all',
    log_parameter_max_length: 0,
    log_line_prefix: '%a|',
  });
  await using cluster = await Cluster.start({ databaseUrl: postgres.url, reapers: 0 });
  const url = `${cluster.urls[0]}/api/v1/topics/orders`;
  using http = new HttpClient(cluster.adminKey);
  await http.call(url, { method: 'PUT', body: {} });
  await http.call(`${url}/events`, { body: event });

  const before = (await statements(postgres)).length;
  for (let i = 0; i < batches; i += 1) {
    await http.call(`${url}/events`, { body: Array.from({ length: 500 }, () => event) });
  }
  const during = (await statements(postgres)).slice(before);
  const publishes = during.filter((statement) => statement.includes('broker.publish_batch'));
  expect(publishes.length, during.join('\n')).toBe(batches);
  expect(during.filter((statement) => /\b(begin|commit|rollback)\b/i.test(statement))).toEqual([]);

  const [row] = await query<{ count: number }>(
    postgres.url,
    'select count(*)::int as count from broker.event',
  );
  expect(row?.count).toBe(batches * 500 + 1);
});

function publishRequest(url: string, key: string): string {
  const body = JSON.stringify(event);
  const { host, pathname } = new URL(`${url}/topics/orders/events`);
  return [
    `POST ${pathname} HTTP/1.1`,
    `host: ${host}`,
    `authorization: Bearer ${key}`,
    'content-type: application/json',
    `content-length: ${body.length}`,
    '',
    body,
  ].join('\r\n');
}

/** One connection that sends the same request again and again. A plain socket: the client shall not take the processors. */
async function publishWhile(
  isLeft: () => boolean,
  api: BrokerProcess,
  request: string,
): Promise<void> {
  const socket = connect({ host: '127.0.0.1', port: Number(new URL(api.url).port), noDelay: true });
  try {
    let heard = '';
    while (isLeft()) {
      socket.write(request);
      do heard += String((await once(socket, 'data'))[0]);
      while (!isComplete(heard));
      if (!heard.startsWith('HTTP/1.1 202 ')) throw new Error(heard);
      heard = '';
    }
  } finally {
    socket.destroy();
  }
}

function isComplete(answer: string): boolean {
  const [head = '', body] = answer.split('\r\n\r\n');
  const [, length] = /^content-length: (\d+)$/im.exec(head) ?? [];
  return body !== undefined && body.length >= Number(length);
}

async function committed(postgres: CrashPostgres): Promise<number> {
  const [row] = await query<{ count: number }>(
    postgres.superuserUrl,
    `select xact_commit::int as count from pg_stat_database where datname = 'broker'`,
  );
  return row?.count ?? 0;
}

/** What the API has sent, as the server has logged it: one line begins each statement. */
async function statements(postgres: CrashPostgres): Promise<string[]> {
  const lines = (await postgres.log()).split(/^(?=[^\n|]*\|LOG: )/m);
  return lines.filter((line) => /^broker-api[^|]*\|LOG: +(execute|statement)/.test(line));
}
