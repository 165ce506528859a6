import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Arrival {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly bytes: number;
}

export interface Upstream extends AsyncDisposable {
  readonly port: number;
  /** Every request whose body came, in order. */
  readonly arrivals: readonly Arrival[];
}

export interface UpstreamOptions {
  /** 127.0.0.x. */
  readonly host: string;
  /** Any that is free without one. */
  readonly port?: number;
  /** What it does with a request that has arrived; without one it answers 200 and `{}`. */
  readonly act?: (arrival: Arrival, response: ServerResponse) => void;
}

/** A server in the API's place, for what the API never does. */
export async function startUpstream(options: UpstreamOptions): Promise<Upstream> {
  const { host, port = 0, act = (_arrival, response) => void response.end('{}') } = options;
  const arrivals: Arrival[] = [];
  const server = createServer((request, response) => {
    let bytes = 0;
    request.on('data', (piece: Buffer) => (bytes += piece.length));
    request.on('error', () => undefined);
    request.on('end', () => {
      const { method = '', url = '', headers } = request;
      const arrival = { method, url, headers, bytes };
      arrivals.push(arrival);
      act(arrival, response);
    });
  });
  server.listen(port, host);
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    arrivals,
    async [Symbol.asyncDispose]() {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
}
