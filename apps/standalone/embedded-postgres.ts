import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import {
  copyFile,
  mkdir,
  open,
  readFile,
  realpath,
  rename,
  stat,
  truncate,
} from 'node:fs/promises';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import {
  clusterExists,
  createCluster,
  findBinaries,
  readPassword,
  removeScratch,
  replaceFile,
} from './cluster.ts';
import { lockDataDir } from './data-dir-lock.ts';
import type { DataDirLock } from './data-dir-lock.ts';
import { isReady, signalIfAlive, stopLeftovers } from './postmaster.ts';
import { chooseRunAs, commandLine, ensureOwner } from './unprivileged.ts';
import type { RootStrategy, RunAs } from './unprivileged.ts';

export interface EmbeddedPostgresOptions {
  /** Made when it is not there. The cluster is `<dataDir>/postgres`, its log `<dataDir>/postgres.log`. */
  readonly dataDir: string;
  /** Gets a line for each thing that a start does beside starting. */
  readonly onLog?: (line: string) => void;
  /** Settings of `postgresql.conf`, over the ones chosen here. `fsync: 'off'` also spares initdb its sync. */
  readonly settings?: Readonly<Record<string, string | number>>;
  /** What root may do to run PostgreSQL, in the fixed order; the rest is taken to be impossible. All by default. */
  readonly rootStrategies?: readonly RootStrategy[];
}

export interface EmbeddedPostgres extends AsyncDisposable {
  /** Database `broker` as the role `broker`, which owns it and is no superuser. */
  readonly url: string;
  /** Database `postgres` as the superuser. */
  readonly superuserUrl: string;
  readonly port: number;
  /** Of the postmaster. */
  readonly pid: number;
  readonly strategy: RunAs['strategy'];
  /** Resolves when the postmaster has ended, whoever ended it. The data directory is free by then. */
  readonly exited: Promise<{
    readonly code: number | null;
    readonly signal: NodeJS.Signals | null;
  }>;
  /** Fast shutdown, after 30 s immediate, after another 5 s kill. Can be called more than once. */
  stop(): Promise<void>;
}

interface Start {
  readonly paths: {
    dataDir: string;
    clusterDir: string;
    passwordFile: string;
    portFile: string;
    logFile: string;
  };
  readonly postgres: string;
  readonly runAs: RunAs;
  readonly settings: Readonly<Record<string, string | number>>;
}

const STOP_DEADLINES = { fastMs: 30_000, immediateMs: 5_000 };
/** Recovery after a crash replays at most `max_wal_size` or so; a slow disk gets its time, a hanging start an end. */
const READY_DEADLINE_MS = 300_000;
const READY_POLL_MS = 5;
const LOG_BYTES_MAX = 16 * 1024 * 1024;
const LOG_CHECK_MS = 30_000;

/**
 * Starts the PostgreSQL of a data directory, making it the first time, and resolves when it takes connections on
 * 127.0.0.1. Handles by itself: root, paths with any character, a start that was interrupted, a stale `postmaster.pid`,
 * a PostgreSQL that outlived its owner, and a port that is taken meanwhile.
 *
 * Throws AlreadyRunningError, and touches nothing, when another process has the data directory.
 */
export async function startEmbeddedPostgres(
  options: EmbeddedPostgresOptions,
): Promise<EmbeddedPostgres> {
  const {
    onLog = () => {},
    settings = {},
    rootStrategies = ['user-namespace', 'other-user'],
  } = options;
  await mkdir(options.dataDir, { recursive: true });
  const dataDir = await realpath(options.dataDir);
  const paths = {
    dataDir,
    clusterDir: join(dataDir, 'postgres'),
    passwordFile: join(dataDir, 'postgres.password'),
    portFile: join(dataDir, 'postgres.port'),
    logFile: join(dataDir, 'postgres.log'),
  };
  const lock = await lockDataDir(dataDir);
  try {
    const binaries = findBinaries();
    await removeScratch(paths);
    await stopLeftovers(paths.clusterDir, STOP_DEADLINES, onLog);
    const runAs = await chooseRunAs({
      ...paths,
      program: binaries.postgres,
      allowed: rootStrategies,
    });
    if (!(await clusterExists(paths))) {
      onLog(`making a new PostgreSQL cluster in ${paths.clusterDir}`);
      await createCluster(paths, { binaries, runAs, isDurable: settings['fsync'] !== 'off' });
    }
    await ensureOwner(paths.clusterDir, runAs);
    const password = await readPassword(paths);
    const { child, pid, port } = await startServer({
      paths,
      postgres: binaries.postgres,
      runAs,
      settings,
    });
    return superviseServer({
      child,
      pid,
      port,
      password,
      paths,
      strategy: runAs.strategy,
      lock,
    });
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/** Starts the postmaster on the port of the last time, or on a free one if that has another user now. */
async function startServer(
  start: Start,
): Promise<{ child: ChildProcess; pid: number; port: number }> {
  const lastPort = Number(await readFile(start.paths.portFile, 'utf8').catch(() => '0'));
  for (let attempt = 1; ; attempt += 1) {
    const port =
      (attempt === 1 && lastPort > 0 && (await listenOnce(lastPort))) || (await listenOnce(0));
    if (port === null) throw new Error('No free TCP port on 127.0.0.1');
    if (port !== lastPort) await replaceFile(start.paths.portFile, `${port}\n`);
    const { child, failure } = await tryServer(start, port);
    if (failure === null && child.pid !== undefined) return { child, pid: child.pid, port };
    // Somebody took the port since we looked.
    if (attempt < 3 && failure?.includes('could not create any TCP/IP sockets')) continue;
    throw new Error(`PostgreSQL did not start: ${failure}`);
  }
}

/** Starts the postmaster once. `failure` is the end of its log when it ended, null when it takes connections. */
async function tryServer(
  start: Start,
  port: number,
): Promise<{ child: ChildProcess; failure: string | null }> {
  const { clusterDir, logFile } = start.paths;
  const settings = {
    // TCP only: a socket's path may have 107 bytes at most, and data directories are longer.
    unix_socket_directories: '',
    listen_addresses: '127.0.0.1',
    port,
    max_connections: 100,
    timezone: 'UTC',
    log_timezone: 'UTC',
    log_checkpoints: 'off',
    ...start.settings,
  };
  const args = [
    '-D',
    clusterDir,
    ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
  ];
  const command = commandLine(start.runAs, start.postgres, args);

  // A fresh file each time: the last one may be big, or belong to the user of the last start.
  await rename(logFile, `${logFile}.1`).catch(() => {});
  const log = await open(logFile, 'a', 0o600);
  // The log is a file and no pipe, so that PostgreSQL outlives a kill of this process in an orderly way. `detached`
  // gives it a session of its own: Ctrl-C on the terminal is for the broker, which drains before it stops PostgreSQL.
  const child = spawn(command.file, command.args, {
    ...command.options,
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  });
  const ended = Promise.withResolvers<string>();
  child.once('error', (error) => ended.resolve(error.message));
  child.once('exit', () => ended.resolve(''));
  await log.close();
  if (await untilReady(child, clusterDir)) return { child, failure: null };
  child.kill('SIGQUIT');
  return { child, failure: (await ended.promise) || (await logEnd(logFile)) };
}

/** Whether the server takes connections; false when it has ended, or has not got there in time. */
async function untilReady(child: ChildProcess, clusterDir: string): Promise<boolean> {
  const deadline = performance.now() + READY_DEADLINE_MS;
  while (child.pid !== undefined && !hasEnded(child) && performance.now() < deadline) {
    if (await isReady(clusterDir, child.pid)) return true;
    await delay(READY_POLL_MS);
  }
  return false;
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

function superviseServer(server: {
  child: ChildProcess;
  pid: number;
  port: number;
  password: string;
  paths: { logFile: string };
  strategy: RunAs['strategy'];
  lock: DataDirLock;
}): EmbeddedPostgres {
  const { child, pid, port, password, strategy } = server;
  const ended = Promise.withResolvers<{ code: number | null; signal: NodeJS.Signals | null }>();
  const logCheck = setInterval(() => {
    // A full disk is for PostgreSQL to report; the next look tries again.
    boundLog(server.paths.logFile).catch(() => {});
  }, LOG_CHECK_MS).unref();
  // An exit that nobody awaited, such as a forced one, leaves no process behind either.
  const stopAtExit = () => signalIfAlive(pid, 'SIGINT');
  process.once('exit', stopAtExit);
  const onExit = (code: number | null, signal: NodeJS.Signals | null) => {
    clearInterval(logCheck);
    process.removeListener('exit', stopAtExit);
    void server.lock.release().then(() => ended.resolve({ code, signal }), ended.reject);
  };
  if (hasEnded(child)) onExit(child.exitCode, child.signalCode);
  else child.once('exit', onExit);

  const stop = async () => {
    child.kill('SIGINT');
    const immediate = setTimeout(() => child.kill('SIGQUIT'), STOP_DEADLINES.fastMs);
    const kill = setTimeout(
      () => child.kill('SIGKILL'),
      STOP_DEADLINES.fastMs + STOP_DEADLINES.immediateMs,
    );
    await ended.promise;
    clearTimeout(immediate);
    clearTimeout(kill);
  };
  // Said, because else PGSSLMODE of the user's shell counts, and this server has no TLS.
  const urlOf = (role: string, database: string) =>
    `postgres://${role}:${password}@127.0.0.1:${port}/${database}?sslmode=disable`;
  return {
    url: urlOf('broker', 'broker'),
    superuserUrl: urlOf('postgres', 'postgres'),
    port,
    pid,
    strategy,
    exited: ended.promise,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

/** The port when it can be listened on (0 stands for any), else null. */
async function listenOnce(port: number): Promise<number | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(null));
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => {
      const { port: found } = server.address() as AddressInfo;
      server.close(() => resolve(found));
    });
  });
}

/** Keeps one full log beside the current one. PostgreSQL appends, so it goes on at the new end. */
async function boundLog(logFile: string): Promise<void> {
  const log = await stat(logFile).catch(() => null);
  if (log === null || log.size < LOG_BYTES_MAX) return;
  try {
    await copyFile(logFile, `${logFile}.1`);
  } finally {
    await truncate(logFile);
  }
}

async function logEnd(logFile: string): Promise<string> {
  return (await readFile(logFile, 'utf8')).trim().split('\n').slice(-10).join('\n');
}
