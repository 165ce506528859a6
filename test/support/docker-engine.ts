import { execFile } from 'node:child_process';
import { createServer, type Server } from 'node:http';
import { connect } from 'node:net';
import { promisify } from 'node:util';

import { DockerHost, makeHostsDir, nameOf, removeHostsDir } from './docker-host.ts';
import { Wire } from './docker-wire.ts';

const run = promisify(execFile);

/** A Docker engine, and how its network is entered: ports that it publishes on 127.0.0.1 are only there. */
export interface DockerEngine {
  readonly host: string;
  /** Command line to put before another, so that this one runs in the engine's network; empty where that is the machine's. */
  readonly enter: readonly string[];
  /** HTTP proxy by which a build reaches the outside; `undefined` where it needs none. */
  readonly proxy: string | undefined;
  readonly description: string;
  stop(): Promise<void>;
}

/** The engine of DOCKER_HOST or of this machine, if it answers. */
export async function findEngine(): Promise<DockerEngine | undefined> {
  // eslint-disable-next-line node/no-process-env
  const host = process.env['DOCKER_HOST'] ?? 'unix:///var/run/docker.sock';
  try {
    await run('docker', ['--host', host, 'info'], { timeout: 10_000 });
  } catch {
    return undefined;
  }
  return { host, enter: [], proxy: undefined, description: host, stop: async () => {} };
}

/** A host of its own on a wire of its own: nothing of it (bridges, firewall rules, files) is left on the machine. Only for root. */
export async function startEngine(): Promise<DockerEngine> {
  const dir = await makeHostsDir();
  const resources = new AsyncDisposableStack();
  resources.defer(async () => removeHostsDir(dir));
  try {
    const wire = resources.adopt(await Wire.open(nameOf(dir)), async (each) => each.close());
    const host = new DockerHost({ dir, wire, number: 1 });
    resources.defer(async () => host.kill());
    await host.start();
    const proxy = resources.adopt(await startProxy(wire.address), (each) => {
      each.closeAllConnections();
      each.close();
    });
    const { port } = proxy.address() as { port: number };
    return {
      host: host.endpoint,
      enter: host.enter,
      proxy: `http://${wire.address}:${port}`,
      description: `dockerd of its own in ${dir}`,
      stop: async () => resources.disposeAsync(),
    };
  } catch (error) {
    await resources.disposeAsync();
    throw error;
  }
}

/** A proxy for TLS only: whoever builds in the engine's network reaches what this machine reaches, without a rule in its firewall. */
async function startProxy(address: string): Promise<Server> {
  const proxy = createServer((_request, response) => response.writeHead(405).end());
  proxy.on('connect', ({ url = '' }, client, head) => {
    const { hostname, port } = new URL(`http://${url}`);
    const server = connect(Number(port || 443), hostname, () => {
      client.write('HTTP/1.1 200 Connected\r\n\r\n');
      server.write(head);
      server.pipe(client).pipe(server);
    });
    server.on('error', () => client.destroy());
    client.on('error', () => server.destroy());
    client.on('close', () => server.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    proxy.once('error', reject).listen(0, address, resolve);
  });
  return proxy;
}
