import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { awaitDatabase } from '#db/await-database.ts';
import { cloneDatabase, query } from '../support/database.ts';
import { startTcpProxy } from '../support/tcp-proxy.ts';

test('a server that does not answer yet, and a database that is not made yet, are waited for', async () => {
  await using database = await cloneDatabase();
  const url = new URL(database.url);
  await using proxy = await startTcpProxy({ host: url.hostname, port: Number(url.port) });
  const name = `late_${randomUUID().slice(0, 8)}`;
  url.pathname = `/${name}`;
  proxy.refuse();
  const reasons: string[] = [];
  const made: Promise<unknown>[] = [];
  await awaitDatabase({
    databaseUrl: proxy.through(url.href),
    timeoutMs: 30_000,
    intervalMs: 20,
    onWaiting: (reason) => {
      reasons.push(reason);
      // each reason is what makes the next step happen
      if (reasons.length === 1) proxy.restore();
      if (reason.includes('does not exist'))
        made.push(query(database.url, `create database ${name}`));
    },
  });
  await Promise.all(made);
  await query(database.url, `drop database ${name} with (force)`);
  expect(reasons.length).toBeGreaterThanOrEqual(2);
  expect(reasons.at(-1)).toBe(`database "${name}" does not exist`);
  // told once, however often it was tried
  expect(new Set(reasons).size).toBe(reasons.length);
});

test('what does not come in time is thrown as it was met', async () => {
  await using database = await cloneDatabase();
  const url = new URL(database.url);
  url.pathname = '/never_made';
  const waiting = awaitDatabase({
    databaseUrl: url.href,
    timeoutMs: 100,
    intervalMs: 20,
    onWaiting: () => undefined,
  });
  await expect(waiting).rejects.toThrow('database "never_made" does not exist');
});

test('what no waiting mends is thrown at once', async () => {
  await using database = await cloneDatabase();
  const url = new URL(database.url);
  // the server of the tests has no certificate
  url.searchParams.set('sslmode', 'verify-full');
  const reasons: string[] = [];
  const waiting = awaitDatabase({
    databaseUrl: url.href,
    timeoutMs: 600_000,
    onWaiting: (reason) => reasons.push(reason),
  });
  await expect(waiting).rejects.toThrow('SSL');
  expect(reasons).toEqual([]);
});
