import { spawn } from 'node:child_process';
import { chown, lchown, mkdtemp, readFile, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** How PostgreSQL, which refuses to run as root, is run. */
export type RootStrategy = 'user-namespace' | 'other-user';

/** As whom a PostgreSQL program runs. */
export interface RunAs {
  readonly strategy: RootStrategy | 'same-user';
  /** Who has to own the cluster's files, as this process sees it. */
  readonly owner: { readonly uid: number; readonly gid: number };
  /** Command that the program is handed to; it replaces itself with the program, so that the pid stays. */
  readonly wrapper: readonly string[];
  /** What `spawn` changes before the program begins. */
  readonly identity: { readonly uid?: number; readonly gid?: number };
}

export interface CommandResult {
  readonly exitCode: number | null;
  /** Both output streams. */
  readonly output: string;
}

/** All that a PostgreSQL program gets to see: no PGPORT, PGDATA or locale of the user's shell. */
const ENVIRONMENT = { PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin', LC_ALL: 'C' };

/** Arguments for `spawn` that run a program in this way; from `/`, since it may not be allowed where we are. */
export function commandLine(runAs: RunAs, program: string, args: readonly string[]) {
  const [file = program, ...rest] = [...runAs.wrapper, program, ...args];
  return { file, args: rest, options: { ...runAs.identity, cwd: '/', env: ENVIRONMENT } };
}

/** Runs a program to its end. Does not throw for an exit code: callers know what theirs mean. */
export async function runCommand(
  runAs: RunAs,
  program: string,
  args: readonly string[],
  input = '',
): Promise<CommandResult> {
  const { file, args: rest, options } = commandLine(runAs, program, args);
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    const child = spawn(file, rest, { ...options, stdio: 'pipe' });
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => chunks.push(chunk));
    // A program that ends before it has read its input says why in its output.
    child.stdin.on('error', () => {});
    child.on('error', (error) => resolve({ exitCode: null, output: error.message }));
    child.on('close', (exitCode) =>
      resolve({ exitCode, output: Buffer.concat(chunks).toString('utf8').trim() }),
    );
    child.stdin.end(input);
  });
}

/**
 * Finds out how PostgreSQL can be run here, by trying. An ordinary user runs it as itself. For root, in this order:
 *
 * 1. In a user namespace in which root's own id is called something else: no privilege is left inside, the files stay
 *    root's, and a path that only root may enter stays open.
 * 2. As another user, with the cluster's files given to it; where it may not enter the path to the program or the data,
 *    with the one capability that lets it (setpriv). Programs need not be copied, nor directories opened to everybody.
 *
 * A cluster that belongs to another user is run as that user, so that the way does not change from start to start.
 * `allowed` narrows what root may do. Throws an error that names DATABASE_URL when nothing works.
 */
export async function chooseRunAs(options: {
  readonly dataDir: string;
  readonly clusterDir: string;
  readonly program: string;
  readonly allowed: readonly RootStrategy[];
}): Promise<RunAs> {
  const uid = process.getuid?.() ?? -1;
  const gid = process.getgid?.() ?? -1;
  if (uid !== 0) return { strategy: 'same-user', owner: { uid, gid }, wrapper: [], identity: {} };

  const failures: string[] = [];
  for (const candidate of await rootCandidates(options.clusterDir)) {
    if (candidate.strategy === 'same-user' || !options.allowed.includes(candidate.strategy))
      continue;
    const failure = await tryRunAs(candidate, options);
    if (failure === null) return candidate;
    failures.push(
      `${candidate.wrapper.slice(0, 1).concat(candidate.strategy).join(', ')}: ${failure}`,
    );
  }
  throw new Error(
    'PostgreSQL refuses to run as root, and here it can be run neither in a user namespace nor as another user ' +
      `(${failures.join('; ') || 'both are switched off'}). Start as an ordinary user, or set DATABASE_URL to a PostgreSQL that is running.`,
  );
}

/** Gives a cluster to the user that runs it. The top comes last, so that an interrupted change is seen and repeated. */
export async function ensureOwner(clusterDir: string, { owner, strategy }: RunAs): Promise<void> {
  if (strategy === 'same-user') return;
  const top = await stat(clusterDir);
  if (top.uid === owner.uid) return;
  for (const entry of await readdir(clusterDir, { recursive: true })) {
    await lchown(join(clusterDir, entry), owner.uid, owner.gid);
  }
  await chown(clusterDir, owner.uid, owner.gid);
}

async function rootCandidates(clusterDir: string): Promise<RunAs[]> {
  const stranger = await unprivilegedAccount();
  const current = await stat(clusterDir).catch(() => null);
  const isRoots = current === null || current.uid === 0;
  const owner = isRoots ? stranger : { uid: current.uid, gid: current.gid };
  const otherUser = { strategy: 'other-user', owner } as const;
  const elevated = (capability: string): RunAs => ({
    ...otherUser,
    wrapper: [
      'setpriv',
      `--reuid=${owner.uid}`,
      `--regid=${owner.gid}`,
      '--clear-groups',
      // Without this access(2), with which PostgreSQL looks for its own programs, would ignore the capability.
      '--securebits=+no_setuid_fixup',
      `--inh-caps=+${capability}`,
      `--ambient-caps=+${capability}`,
      '--',
    ],
    identity: {},
  });
  const inNamespace: RunAs = {
    strategy: 'user-namespace',
    owner: { uid: 0, gid: 0 },
    // Ids that have a name inside: initdb asks who it is.
    wrapper: [
      'unshare',
      '--user',
      `--map-user=${stranger.uid}`,
      `--map-group=${stranger.gid}`,
      '--',
    ],
    identity: {},
  };
  return [
    ...(isRoots ? [inNamespace] : []),
    { ...otherUser, wrapper: [], identity: owner },
    // Enter and read everything; where a container has taken that away, the wider one that containers do leave.
    elevated('dac_read_search'),
    elevated('dac_override'),
  ];
}

/** The ids of an account that is not root: PostgreSQL's own where there is one. */
async function unprivilegedAccount(): Promise<{ uid: number; gid: number }> {
  const lines = (await readFile('/etc/passwd', 'utf8').catch(() => ''))
    .split('\n')
    .map((line) => line.split(':'));
  for (const name of ['postgres', 'nobody', 'daemon']) {
    const account = lines.find((fields) => fields[0] === name);
    const uid = Number(account?.[2]);
    const gid = Number(account?.[3]);
    if (uid > 0 && gid > 0) return { uid, gid };
  }
  return { uid: 65_534, gid: 65_534 };
}

/** Null when the program starts in this way and can write beside the cluster; else what went wrong. */
async function tryRunAs(
  runAs: RunAs,
  options: { dataDir: string; program: string },
): Promise<string | null> {
  const scratch = await mkdtemp(join(options.dataDir, 'tmp-'));
  try {
    await chown(scratch, runAs.owner.uid, runAs.owner.gid);
    const script = 'test "$(id -u)" -ne 0 && cd -- "$1" && : > written && exec "$2" --version';
    const { exitCode, output } = await runCommand(runAs, '/bin/sh', [
      '-c',
      script,
      'sh',
      scratch,
      options.program,
    ]);
    // It begins in spite of a path that it cannot look at, with a complaint, and would fail later.
    const isFine = exitCode === 0 && /^postgres \(PostgreSQL\) \S+$/.test(output);
    return isFine ? null : output.split('\n')[0] || `exit code ${exitCode}`;
  } catch (error) {
    return (error as Error).message;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
