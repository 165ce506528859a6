import { once } from 'node:events';
import {
  type AddressInfo,
  createServer,
  type ListenOptions,
  type Server,
  type Socket,
} from 'node:net';
import { createServer as createTlsServer, type TlsOptions } from 'node:tls';

export interface RawEndpoint extends AsyncDisposable {
  readonly port: number;
  /** Everything that was connected, in order. */
  readonly sockets: readonly Socket[];
  /** What has been read of each, as text. */
  readonly received: readonly string[];
}

export interface RawEndpointOptions extends ListenOptions {
  /** Speaks TLS. */
  readonly tls?: TlsOptions;
  /** Whether it reads what it is sent (true). */
  readonly reads?: boolean;
}

/** A server that does to each connection what it is told, byte by byte. Listens on 127.0.0.1 unless told otherwise. */
export async function rawEndpoint(
  onSocket: (socket: Socket, number: number) => void,
  { tls, reads = true, ...listenOptions }: RawEndpointOptions = {},
): Promise<RawEndpoint> {
  const sockets: Socket[] = [];
  const received: string[] = [];
  const accept = (socket: Socket): void => {
    const index = sockets.push(socket) - 1;
    received.push('');
    socket.on('error', () => {});
    if (reads) {
      socket.on('data', (chunk: Buffer) => (received[index] += chunk.toString('latin1')));
    }
    onSocket(socket, index + 1);
  };
  const server: Server =
    tls === undefined
      ? createServer(accept)
      : createTlsServer(tls, accept).on('tlsClientError', () => {});
  server.listen({ host: '127.0.0.1', port: 0, ...listenOptions });
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    sockets,
    received,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}
