/**
 * Goal: `npm start` has a database wherever it is started and whatever happened before.
 * Method: real PostgreSQL processes on data directories of their own; owners are separate processes where they are
 * killed. fsync is off except in the first test: no machine is crashed here.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readFile, readdir, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { AlreadyRunningError } from '../../apps/standalone/data-dir-lock.ts';
import { query } from '../support/database.ts';
import {
  DataDirLab,
  isRunning,
  killOwner,
  ownedPostgres,
  readRow,
  stopOwner,
  untilGone,
  writeRow,
} from '../support/embedded-postgres.ts';
import { eventually } from '../support/eventually.ts';

let lab: DataDirLab;

beforeEach(async () => {
  lab = await DataDirLab.open();
});

afterEach(async () => {
  await lab[Symbol.asyncDispose]();
});

async function setting(url: string, name: string): Promise<unknown> {
  return (await query(url, 'select current_setting($1) as value', [name]))[0]?.['value'];
}

/** Pid that PostgreSQL wrote down, replaced: what a reboot or a long uptime makes of a stale file. */
async function replacePid(pid: number): Promise<void> {
  const file = join(lab.dataDir, 'postgres/postmaster.pid');
  const [, ...rest] = (await readFile(file, 'utf8')).split('\n');
  await writeFile(file, [pid, ...rest].join('\n'));
}

describe('start and stop', () => {
  test('the first start makes a durable cluster that only a password and this machine open', async () => {
    const postgres = await lab.start({ settings: {} });
    expect(await setting(postgres.url, 'fsync')).toBe('on');
    expect(await setting(postgres.url, 'synchronous_commit')).toBe('on');
    expect(await setting(postgres.url, 'max_connections')).toBe('100');
    expect(await setting(postgres.url, 'listen_addresses')).toBe('127.0.0.1');
    expect(await setting(postgres.superuserUrl, 'unix_socket_directories')).toBe('');
    expect(
      await query(
        postgres.url,
        `select current_user as role, pg_encoding_to_char(encoding) as encoding, datcollate as collation,
           (select usesuper from pg_user where usename = current_user) as super
         from pg_database where datname = current_database()`,
      ),
    ).toEqual([{ role: 'broker', encoding: 'UTF8', collation: 'C', super: false }]);
    const wrong = new URL(postgres.url);
    wrong.password = 'wrong';
    await expect(query(wrong.href, 'select 1')).rejects.toThrow('password authentication failed');
    expect((await stat(join(lab.dataDir, 'postgres.password'))).mode & 0o777).toBe(0o600);
    expect((await readdir(lab.dataDir)).toSorted()).toEqual([
      'broker.lock',
      'broker.pid',
      'postgres',
      'postgres.log',
      'postgres.password',
      'postgres.port',
    ]);
  });

  test('a restart keeps data, password and port', async () => {
    const first = await lab.start();
    await writeRow(first.url);
    await first.stop();
    await first.stop();
    expect(isRunning(first.pid)).toBe(false);
    const second = await lab.start();
    expect(second.url).toBe(first.url);
    expect(await readRow(second.url)).toBe(42);
  });

  test('a port that was taken meanwhile is replaced by a free one', async () => {
    const first = await lab.start();
    await first.stop();
    const squatter = createServer().listen(first.port, '127.0.0.1');
    await once(squatter, 'listening');
    lab.onDispose(() => void squatter.close());
    const second = await lab.start();
    expect(second.port).not.toBe(first.port);
    expect(await setting(second.url, 'port')).toBe(String(second.port));
  });

  test('a setting that PostgreSQL refuses is an error with its own words, and frees the data directory', async () => {
    await expect(lab.start({ settings: { fsync: 'perhaps' } })).rejects.toThrow(
      'parameter "fsync" requires a Boolean value',
    );
    await lab.start();
  });

  test('paths with spaces, quotes and umlauts, longer than a socket path may be', async () => {
    lab.dataDir = join(lab.scratch, `Größe "und" it's $HOME \\ ${'long '.repeat(25)}`, 'data dir');
    const postgres = await lab.start();
    expect(await setting(postgres.superuserUrl, 'data_directory')).toBe(
      join(lab.dataDir, 'postgres'),
    );
  });

  test('Ctrl-C on the terminal does not reach PostgreSQL before its owner stops it', async () => {
    const { child, info } = await lab.startOwner();
    const interrupted = once(createInterface(child.stdout!), 'line');
    process.kill(-child.pid!, 'SIGINT');
    expect(await interrupted).toEqual(['SIGINT']);
    await writeRow(info.url);
    await stopOwner(child);
    expect(isRunning(info.pid)).toBe(false);
  });

  test('a process that exits without stopping anything leaves no PostgreSQL behind', async () => {
    const child = lab.spawnOwner({ exitAtOnce: true });
    const [info] = await Promise.all([ownedPostgres(child), once(child, 'exit')]);
    expect(child.exitCode).toBe(3);
    await untilGone(info.pid);
  });
});

describe('after a crash', () => {
  test('kill -9 of PostgreSQL: its end is told, and the next start has everything', async () => {
    const first = await lab.start();
    await writeRow(first.url);
    process.kill(first.pid, 'SIGKILL');
    expect(await first.exited).toEqual({ code: null, signal: 'SIGKILL' });
    expect(existsSync(join(lab.dataDir, 'postgres/postmaster.pid'))).toBe(true);
    const second = await lab.start();
    expect(await readRow(second.url)).toBe(42);
    await first.stop();
    expect(isRunning(second.pid)).toBe(true);
  });

  test('kill -9 of PostgreSQL while a statement runs: the backend that stays behind is ended', async () => {
    const first = await lab.start();
    await writeRow(first.url);
    // Computes for minutes and looks at nothing meanwhile, so it does not see that the postmaster is gone.
    const busy = query(
      first.superuserUrl,
      'select count(n) from (select generate_series(1, 1e10)) as numbers (n)',
    );
    const failure = busy.catch((error: unknown) => error);
    const backend = await eventually(async () => {
      const rows = await query(
        first.superuserUrl,
        `select pid from pg_stat_activity where query like '%1e10%' and pid <> pg_backend_pid()`,
      );
      expect(rows).toHaveLength(1);
      return rows[0]!['pid'] as number;
    });
    process.kill(first.pid, 'SIGKILL');
    await first.exited;
    expect(isRunning(backend)).toBe(true);
    const second = await lab.start();
    expect(await failure).toBeInstanceOf(Error);
    expect(isRunning(backend)).toBe(false);
    expect(await readRow(second.url)).toBe(42);
  });

  test('kill -9 of the owner: the PostgreSQL that outlives it is stopped in order, and started again', async () => {
    const { child, info } = await lab.startOwner();
    await writeRow(info.url);
    await killOwner(child);
    expect(await readRow(info.url)).toBe(42);
    const lines: string[] = [];
    const second = await lab.start({ onLog: (line) => lines.push(line) });
    expect(lines).toEqual([expect.stringContaining(`(pid ${info.pid})`)]);
    expect(isRunning(info.pid)).toBe(false);
    expect(second.url).toBe(info.url);
    expect(await readRow(second.url)).toBe(42);
    expect(await readFile(join(lab.dataDir, 'postgres.log'), 'utf8')).not.toContain(
      'was not properly shut down',
    );
  });

  test('kill -9 of everything, and the pid in postmaster.pid belongs to another program now', async () => {
    const { child, info } = await lab.startOwner();
    await writeRow(info.url);
    await killOwner(child);
    process.kill(info.pid, 'SIGKILL');
    await untilGone(info.pid);
    const bystander = spawn('sleep', ['600']);
    lab.onDispose(() => void bystander.kill());
    await replacePid(bystander.pid!);
    const second = await lab.start();
    expect(await readRow(second.url)).toBe(42);
    expect(isRunning(bystander.pid!)).toBe(true);
    expect(bystander.signalCode).toBe(null);
  });

  test('an empty postmaster.pid, as a power cut leaves it', async () => {
    const first = await lab.start();
    await first.stop();
    await writeFile(join(lab.dataDir, 'postgres/postmaster.pid'), '');
    const second = await lab.start();
    expect(second.url).toBe(first.url);
  });

  test('kill -9 in the middle of the first start: the next one makes a whole cluster', async () => {
    const child = lab.spawnOwner();
    await eventually(
      async () => {
        const names = await readdir(lab.dataDir);
        expect(names.some((name) => existsSync(join(lab.dataDir, name, 'postgres/base')))).toBe(
          true,
        );
      },
      { intervalMs: 1 },
    );
    await killOwner(child);
    expect(existsSync(join(lab.dataDir, 'postgres'))).toBe(false);
    const postgres = await lab.start();
    await writeRow(postgres.url);
    expect((await readdir(lab.dataDir)).filter((name) => name.startsWith('tmp-'))).toEqual([]);
  });
});

describe('two starts on one data directory', () => {
  test('a second one, here or in another process, is refused by name and disturbs nothing', async () => {
    const first = await lab.start();
    await writeRow(first.url);
    const refusal = `already running (pid ${process.pid})`;
    await expect(lab.start()).rejects.toThrow(AlreadyRunningError);
    await expect(lab.start()).rejects.toThrow(refusal);
    const { info } = await lab.startOwner();
    expect(info.error).toContain(refusal);
    expect(await readRow(first.url)).toBe(42);
    expect(Number((await readFile(join(lab.dataDir, 'broker.pid'), 'utf8')).trim())).toBe(
      process.pid,
    );
  });

  test('of many at the very same moment exactly one wins, in one process and in several', async () => {
    const here = await Promise.allSettled(Array.from({ length: 8 }, () => lab.start()));
    const winners = here.filter((result) => result.status === 'fulfilled');
    expect(winners).toHaveLength(1);
    await winners[0]?.value.stop();

    const owners = await Promise.all([lab.startOwner(), lab.startOwner(), lab.startOwner()]);
    const winner = owners.find(({ info }) => info.error === undefined)?.child.pid;
    const losers = owners.filter(({ child }) => child.pid !== winner);
    expect(losers.map(({ info }) => info.error)).toEqual(
      Array.from({ length: 2 }, () => expect.stringContaining(`already running (pid ${winner})`)),
    );
  });
});
