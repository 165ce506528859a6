/**
 * Goal: a certificate is got and renewed over several hosts with nothing shared between them but a setting of nginx, and a renewal
 * costs no request.
 *
 * Method: Debian's certbot, called by deploy/certificate/obtain, asks a real ACME server (Pebble). Two of the project's nginx, on
 * port 80 of two addresses of the loopback range, are behind one name; the server is led to the one or to the other. Their
 * certificates are hard links to the files of SECRETS_DIR: as with the mounts of Compose, a file put in its place would not be seen.
 */
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { link, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { type DnsServer, startDnsServer } from '#test/support/dns-server.ts';
import { eventually } from '#test/support/eventually.ts';
import {
  type Ended,
  type Pebble,
  runToEnd,
  startPebble,
  whyNoCertbot,
  whyNoPebble,
} from '#test/support/nginx-acme.ts';
import { findNginx, type NginxBinary } from '#test/support/nginx-binary.ts';
import { startTlsLoad, type TlsLoad } from '#test/support/nginx-tls-load.ts';
import { startUpstream, type Upstream } from '#test/support/nginx-upstream.ts';
import { Nginx } from '#test/support/nginx.ts';
import { selfSigned } from '#test/support/self-signed.ts';

const name = 'broker.test';
const hosts = ['127.0.0.2', '127.0.0.3'] as const;
const scripts = join(import.meta.dirname, '../../deploy/certificate');
const resources = new AsyncDisposableStack();
const missing =
  process.getuid?.() === 0
    ? ((await whyNoCertbot()) ?? (await whyNoPebble()))
    : 'only root may listen on port 80, and have an /etc/hosts of its own';
if (missing !== undefined) console.log(`certbot is not tested: ${missing}`);

let dir: string;
let secrets: string;
let binary: NginxBinary;
let upstream: Upstream;
let replicas: DnsServer;
let challenged: DnsServer;
let pebble: Pebble;
let first: string;
const nginxes = new Map<string, Nginx>();

/** In a mount namespace in which /etc/hosts has the name, with both addresses. */
async function obtain(...args: string[]): Promise<Ended> {
  const command = args.length > 0 ? args : ['kill', '-HUP', ...pids()];
  const mount = ['sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"', join(dir, 'hosts')];
  const called = [join(scripts, 'obtain'), '--server', pebble.directory, name, `ops@${name}`];
  return runToEnd('unshare', ['--mount', ...mount, ...called, ...command], {
    SECRETS_DIR: secrets,
    CERTBOT_DIR: join(dir, 'certbot'),
    REQUESTS_CA_BUNDLE: pebble.caFile,
  });
}

function pids(): string[] {
  return [...nginxes.values()].map(({ pid }) => String(pid));
}

async function startNginx(host: string, thumbprint: string): Promise<void> {
  await nginxes.get(host)?.[Symbol.asyncDispose]();
  const settings = {
    LISTEN_ADDRESSES: host,
    HTTP_PORT: '80',
    TLS: 'on',
    TLS_DIR: join(dir, host),
    ACME_THUMBPRINT: thumbprint,
    DNS_RESOLVER: replicas.address,
    API_PORT: String(upstream.port),
    CLIENT_REQUESTS_PER_SECOND: '100000',
    CLIENT_REQUESTS_BURST: '100000',
  };
  nginxes.set(host, await Nginx.start(binary, settings));
}

/** Serial number of what is served there, when it is valid for the name. */
async function servedSerial(host: string): Promise<string> {
  const port = nginxes.get(host)?.tlsPort ?? 0;
  const socket = connectTls({ host, port, servername: name, ca: [pebble.root, first] });
  try {
    await once(socket, 'secureConnect');
    return socket.getPeerCertificate().serialNumber;
  } finally {
    socket.destroy();
  }
}

async function installedSerial(): Promise<string> {
  return new X509Certificate(await readFile(join(secrets, 'tls_fullchain'))).serialNumber;
}

async function untilServed(serial: string): Promise<void> {
  for (const host of hosts)
    await eventually(async () => expect(await servedSerial(host), host).toBe(serial));
}

/** Challenges of the ACME server that this nginx has answered. */
async function challenges(host: string): Promise<number> {
  const lines = (await nginxes.get(host)?.accessLines()) ?? [];
  const path = /^\/\.well-known\/acme-challenge\/(?!probe$)/;
  return lines.filter((line) => path.test(line.path) && line.status === 200).length;
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'broker-acme-'));
  resources.defer(async () => rm(dir, { recursive: true, force: true }));
  secrets = join(dir, 'secrets');
});

afterAll(async () => {
  await Promise.all([...nginxes.values()].map(async (nginx) => nginx[Symbol.asyncDispose]()));
  await resources.disposeAsync();
});

describe.skipIf(missing !== undefined)('with a real ACME server', () => {
  let thumbprint: string;

  beforeAll(async () => {
    binary = resources.use(await findNginx());
    const act = (
      _arrival: unknown,
      response: { writeHead(status: number): unknown; end(): void },
    ) => {
      response.writeHead(202);
      response.end();
    };
    upstream = resources.use(await startUpstream({ host: '127.0.0.4', act }));
    replicas = resources.use(await startDnsServer('tasks.api'));
    replicas.set(['127.0.0.4']);
    challenged = resources.use(await startDnsServer(name));
    pebble = resources.use(await startPebble({ dns: challenged.address }));
    const named = ['127.0.0.1 localhost', ...hosts.map((host) => `${host} ${name}`)];
    await writeFile(join(dir, 'hosts'), `${named.join('\n')}\n`);
    const { key, cert } = selfSigned({ names: [name] });
    first = cert;
    await mkdir(secrets, { mode: 0o700 });
    await writeFile(join(secrets, 'tls_fullchain'), cert, { mode: 0o444 });
    await writeFile(join(secrets, 'tls_privkey'), key, { mode: 0o444 });
    for (const host of hosts) {
      await mkdir(join(dir, host));
      await link(join(secrets, 'tls_fullchain'), join(dir, host, 'fullchain.pem'));
      await link(join(secrets, 'tls_privkey'), join(dir, host, 'privkey.pem'));
      await startNginx(host, '');
    }
  });

  test('before nginx has the thumbprint, it is printed and nothing is asked for', async () => {
    challenged.set(hosts);
    const { code, output } = await obtain();
    expect(code, output).toBe(75);
    thumbprint = /^ +ACME_THUMBPRINT=(\S{43})$/m.exec(output)?.[1] ?? '';
    expect(thumbprint, output).not.toBe('');
    for (const host of hosts) expect(output).toContain(`nginx at ${host} does not answer`);
    expect(challenged.answered).toBe(0);
  });

  test('one host that does not answer is named', async () => {
    await startNginx(hosts[0], thumbprint);
    await startNginx(hosts[1], 'x'.repeat(43));
    const { code, output } = await obtain();
    expect(code, output).toBe(75);
    expect(output).toContain(`nginx at ${hosts[0]} answers`);
    expect(output).toContain(
      `nginx at ${hosts[1]} does not answer for ${name}; what came: 'probe.xxx`,
    );
    expect(output).toContain(`ACME_THUMBPRINT=${thumbprint}`);
  });

  test('the certificate is got through the one host and served by both', async () => {
    await startNginx(hosts[1], thumbprint);
    challenged.set([hosts[0]]);
    const { code, output } = await obtain();
    expect(code, output).toBe(0);
    expect(await challenges(hosts[0])).toBeGreaterThan(0);
    expect(await challenges(hosts[1])).toBe(0);
    await untilServed(await installedSerial());
    for (const file of ['tls_fullchain', 'tls_privkey'])
      expect((await stat(join(secrets, file))).mode & 0o777, file).toBe(0o444);
  });

  test('again, nothing is asked for, and nginx is told once more', async () => {
    const before = await installedSerial();
    const { code, output } = await obtain('echo', 'told');
    expect(code, output).toBe(0);
    expect(output).toMatch(/has this certificate already\.[^]*\ntold\n/);
    expect(await installedSerial()).toBe(before);
    expect(await obtain()).toMatchObject({ code: 0 });
  });

  test('a renewal through the other host, under load, loses no request', async () => {
    challenged.set([hosts[1]]);
    const before = await installedSerial();
    const loads = hosts.map((host) => startLoad(host));
    try {
      await acceptMore(loads, 100);
      // Pebble takes one validation in a hundred from an earlier order, whatever it is told.
      for (let count = 0; count < 4 && (await challenges(hosts[1])) === 0; count += 1) {
        const { code, output } = await renew();
        expect(code, output).toBe(0);
      }
      const renewed = await installedSerial();
      expect(renewed).not.toBe(before);
      await untilServed(renewed);
      await acceptMore(loads, 100);
    } finally {
      const failed = (await Promise.all(loads.map(async (load) => load.stop()))).flat();
      for (const load of loads) load[Symbol.dispose]();
      expect(failed).toEqual([]);
    }
    const accepted = loads.flatMap((load) => load.accepted);
    const arrived = upstream.arrivals.flatMap(({ headers }) => headers['idempotency-key'] ?? []);
    console.log(`a renewal: ${accepted.length} sent, 0 failed, ${arrived.length} arrived`);
    expect(arrived.toSorted()).toEqual(accepted.toSorted());
    expect(await challenges(hosts[1])).toBeGreaterThan(0);
  });

  test('a certificate that was got in another way is got again, so that it is renewed in this one', async () => {
    const before = await installedSerial();
    const renewal = join(dir, 'certbot/renewal', `${name}.conf`);
    const settings = await readFile(renewal, 'utf8');
    await writeFile(renewal, settings.replace('authenticator = manual', 'authenticator = webroot'));
    const { code, output } = await obtain();
    expect(code, output).toBe(0);
    expect(await readFile(renewal, 'utf8')).toContain('authenticator = manual');
    expect(await installedSerial()).not.toBe(before);
    await untilServed(await installedSerial());
  });

  test("renewals of other certificates than the broker's call nothing", async () => {
    const hook = join(dir, 'certbot/renewal-hooks/deploy', `event-broker-${name}`);
    const ended = await runToEnd(hook, [], { RENEWED_LINEAGE: join(dir, 'certbot/live/another') });
    expect(ended).toEqual({ code: 0, output: '' });
  });

  /** As certbot's timer does, but for the date and the folders. */
  async function renew(): Promise<Ended> {
    const folders = ['--config-dir', 'certbot', '--work-dir', 'work', '--logs-dir', 'logs'];
    const options = folders.map((each) => (each.startsWith('--') ? each : join(dir, each)));
    const args = ['renew', '--force-renewal', '--no-random-sleep-on-renew', ...options];
    return runToEnd('certbot', args, { REQUESTS_CA_BUNDLE: pebble.caFile });
  }

  function startLoad(host: string): TlsLoad {
    const port = nginxes.get(host)?.tlsPort ?? 0;
    return startTlsLoad({ host, port, servername: name, ca: [pebble.root] });
  }

  async function acceptMore(loads: readonly TlsLoad[], count: number): Promise<void> {
    const wanted = loads.map((load) => load.accepted.length + count);
    await eventually(
      () => {
        for (const [index, load] of loads.entries())
          expect(load.accepted.length).toBeGreaterThanOrEqual(wanted[index] ?? 0);
      },
      { timeoutMs: 30_000, what: `${count} more publishes` },
    );
  }
});
