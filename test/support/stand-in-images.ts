import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { copyFile, cp, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const quiet = { maxBuffer: 64 << 20 };

/** Image names, each with what stands in for it where it cannot be had. */
export interface BaseImages {
  readonly node: string;
  readonly debian: string;
  readonly postgres: string;
  readonly nginx: string;
}

/** Debian's mirror of this machine; the only address that stand-ins need beside npm's registry. */
export async function debianMirror(): Promise<string> {
  const text = await readFile('/etc/apt/sources.list.d/debian.sources', 'utf8');
  const uri = /^URIs:\s*(\S+)/m.exec(text)?.[1];
  if (uri === undefined)
    throw new Error('no Debian mirror in /etc/apt/sources.list.d/debian.sources');
  return uri;
}

/** A minimal Debian in `dir`, as the slim images are: no documentation, no lists, no caches. */
async function bootstrap(suite: string, dir: string, packages = ''): Promise<void> {
  if (existsSync(join(dir, '.complete'))) return;
  const script = `/usr/share/debootstrap/scripts/${suite}`;
  // an older debootstrap knows only the name that never changes
  const known = existsSync(script) ? script : '/usr/share/debootstrap/scripts/sid';
  const include = packages === '' ? [] : [`--include=${packages}`];
  const options = ['--variant=minbase', ...include, suite, dir, await debianMirror(), known];
  await run('debootstrap', options, quiet);
  const dropped =
    'var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/* var/log/*';
  await run('sh', ['-c', `cd "$1" && rm -rf ${dropped}`, 'sh', dir]);
  await writeFile(join(dir, '.complete'), '');
}

/** Imports the folder as an image. */
async function importImage(docker: readonly string[], dir: string, name: string): Promise<void> {
  const tar = spawn('tar', ['-C', dir, '--exclude=./.complete', '-c', '.'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const load = spawn(docker[0]!, [...docker.slice(1), 'import', '-', name], {
    stdio: [tar.stdout, 'ignore', 'inherit'],
  });
  const code = await new Promise<number | null>((resolve) => load.once('exit', resolve));
  if (code !== 0) throw new Error(`docker import ${name} ended with ${code}`);
}

/** Puts all four into an engine; what `dir` has of an earlier run is used again. `docker`: command line of the client. */
export async function provideStandIns(
  docker: readonly string[],
  dir: string,
  images: BaseImages,
): Promise<void> {
  const archive = join(dir, `stand-ins-${await fingerprint()}.tar`);
  const [command = '', ...args] = docker;
  if (existsSync(archive)) {
    await run(command, [...args, 'load', '--quiet', '--input', archive]);
    return;
  }
  await makeStandIns(docker, dir, images);
  await run(command, [...args, 'save', '--output', `${archive}.part`, ...Object.values(images)]);
  await rename(`${archive}.part`, archive);
}

/** Changes with how they are made and with what of this machine goes in. */
async function fingerprint(): Promise<string> {
  const { stdout: registry } = await run('npm', ['config', 'get', 'registry']);
  const hash = createHash('sha256').update(await readFile(import.meta.filename));
  return hash.update(`${process.version} ${registry}`).digest('hex').slice(0, 16);
}

async function makeStandIns(
  docker: readonly string[],
  dir: string,
  images: BaseImages,
): Promise<void> {
  const [slim, servers] = [join(dir, 'trixie'), join(dir, 'forky')];
  await Promise.all([
    bootstrap('trixie', slim),
    // a suite with an nginx and a PostgreSQL as new as the stack's
    bootstrap('forky', servers, 'nginx-light,postgresql,curl'),
  ]);
  await importImage(docker, slim, images.debian);
  await importImage(docker, servers, 'event-broker-stand-in:servers');
  const node = join(dir, 'node');
  await mkdir(node, { recursive: true });
  await copyFile(process.execPath, join(node, 'node'));
  // npm says where its packages are by the node that runs it, which may be the one of the dependencies
  const { stdout: command } = await run('sh', ['-c', 'readlink -f "$(command -v npm)"']);
  await cp(dirname(dirname(command.trim())), join(node, 'npm'), { recursive: true });
  const { stdout: registry } = await run('npm', ['config', 'get', 'registry']);
  // The stand-in trusts what this machine trusts.
  await copyFile('/etc/ssl/certs/ca-certificates.crt', join(node, 'ca.crt'));
  await writeFile(join(node, 'npmrc'), `registry=${registry.trim()}\ncafile=/etc/ssl/ca.crt\n`);
  await writeFile(
    join(node, 'Dockerfile'),
    `FROM ${images.debian}
COPY node /usr/local/bin/node
COPY npm /usr/local/lib/node_modules/npm
COPY ca.crt /etc/ssl/ca.crt
COPY npmrc /usr/local/etc/npmrc
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
`,
  );
  await build(docker, node, images.node);
  const postgres = join(dir, 'postgres');
  await mkdir(postgres, { recursive: true });
  await writeFile(join(postgres, 'entry'), postgresEntry, { mode: 0o755 });
  await writeFile(
    join(postgres, 'Dockerfile'),
    `FROM event-broker-stand-in:servers
COPY entry /usr/local/bin/entry
RUN ln -s $(echo /usr/lib/postgresql/*/bin)/* /usr/local/bin/ 2>/dev/null; rm -rf /var/lib/postgresql/*; \\
    mkdir -p /run/postgresql && chown postgres /run/postgresql /var/lib/postgresql
ENTRYPOINT ["entry"]
`,
  );
  await build(docker, postgres, images.postgres);
  const nginx = join(dir, 'nginx');
  await mkdir(nginx, { recursive: true });
  await writeFile(
    join(nginx, 'Dockerfile'),
    'FROM event-broker-stand-in:servers\nCMD ["nginx", "-g", "daemon off;"]\n',
  );
  await build(docker, nginx, images.nginx);
}

async function build(docker: readonly string[], dir: string, name: string): Promise<void> {
  const options = ['build', '--quiet', '--tag', name, dir];
  await run(docker[0]!, [...docker.slice(1), ...options], {
    ...quiet,
    // eslint-disable-next-line node/no-process-env
    env: { ...process.env, DOCKER_BUILDKIT: '0' },
  });
}

// What the real image does with its variables, and no more: a set-up on a socket only, then the server.
const postgresEntry = `#!/bin/sh
set -eu
export PGDATA=/var/lib/postgresql/18/docker
if [ "$(id -u)" = 0 ]; then
  chown postgres /var/lib/postgresql
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust >/dev/null
  rm /tmp/password
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl --wait --options="-c listen_addresses=''" start >/dev/null
  [ "$POSTGRES_DB" = postgres ] || createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl --wait stop >/dev/null
fi
exec postgres -c listen_addresses='*' "$@"
`;
