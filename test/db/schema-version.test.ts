import { sql } from 'kysely';
import { describe, expect, test, vi } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { knownMigrations, migrate } from '#db/migrate.ts';
import { checkSchema, IncompatibleSchema, waitForSchema } from '#db/schema-version.ts';
import { openVerbDatabase } from '#test/support/verbs.ts';
import { eventually } from '../support/eventually.ts';

describe('a schema', () => {
  test('of this release is current, and one of a later release too', async () => {
    await using database = await openVerbDatabase();
    expect(await checkSchema(database.db)).toEqual({ status: 'current' });
    await sql`insert into broker.kysely_migration (name, timestamp) values ('9999_later', '')`.execute(
      database.db,
    );
    expect(await checkSchema(database.db)).toEqual({ status: 'current' });
  });

  test('that has taken away what this release needs is incompatible, and waiting is no use', async () => {
    await using database = await openVerbDatabase();
    await sql`update broker.compatibility set minimum_migration = '9999_later'`.execute(
      database.db,
    );
    expect(await checkSchema(database.db)).toMatchObject({
      status: 'incompatible',
      detail: expect.stringContaining('9999_later') as string,
    });
    const { signal } = new AbortController();
    await expect(waitForSchema(database.db, { signal })).rejects.toBeInstanceOf(IncompatibleSchema);
  });

  test('that is not there, or lacks a migration, is waited for, and each reason is told once', async () => {
    await using database = await openVerbDatabase();
    const known = await knownMigrations();
    const last = known.at(-1)!;
    await sql`delete from broker.kysely_migration where name = ${last}`.execute(database.db);
    expect(await checkSchema(database.db)).toEqual({ status: 'older', missing: [last] });
    const onWaiting = vi.fn<(reason: string) => void>();
    const waited = waitForSchema(database.db, {
      signal: new AbortController().signal,
      onWaiting,
      lookMs: 20,
    });
    await eventually(() => expect(onWaiting).toHaveBeenCalledTimes(1));
    expect(onWaiting.mock.calls[0]?.[0]).toContain(last);
    await sql`drop schema broker cascade`.execute(database.db);
    await eventually(() => expect(onWaiting).toHaveBeenCalledTimes(2));
    expect(await checkSchema(database.db)).toEqual({ status: 'older', missing: known });
    await migrate({ databaseUrl: database.url });
    await waited;
    const reasons = onWaiting.mock.calls.map(([reason]) => reason);
    expect(reasons.every((reason, index) => reason !== reasons[index - 1])).toBe(true);
  });

  test('whose migrations are there and whose functions are not yet is older', async () => {
    await using database = await openVerbDatabase();
    await sql`delete from broker.definition where path = 'functions/claim.sql'`.execute(
      database.db,
    );
    expect(await checkSchema(database.db)).toEqual({
      status: 'older',
      missing: ['functions/claim.sql'],
    });
  });
});

test('a database that does not answer is waited for until the wait is ended', async () => {
  const handle = createDatabase({
    url: 'postgres://broker@127.0.0.1:1/broker',
    applicationName: 'nowhere',
    poolMax: 1,
    statementTimeoutMs: 1000,
  });
  const abort = new AbortController();
  const onWaiting = vi.fn();
  const waited = waitForSchema(handle.db, { signal: abort.signal, onWaiting, lookMs: 5 });
  await eventually(() => expect(onWaiting).toHaveBeenCalledTimes(1));
  abort.abort();
  await expect(waited).rejects.toThrow('aborted');
  await handle.close();
});
