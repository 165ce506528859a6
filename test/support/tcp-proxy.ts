import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

export interface TcpProxy extends AsyncDisposable {
  readonly port: number;
  /** `url` with the proxy's address instead of the target's. */
  through(url: string): string;
  /** Connections that are open. */
  readonly connections: number;
  /** Breaks every connection (RST); new ones are made as before. */
  cut(): void;
  /** Keeps connections open, passes nothing on in either direction, and takes new ones without a word. */
  blackhole(): void;
  /** Breaks every connection, and new ones as they come: nobody listens. */
  refuse(): void;
  /** Passes everything on again; what was swallowed is gone, so connections of that time are cut. */
  restore(): void;
  /** Each piece waits so long, in both directions. */
  delay(ms: number): void;
  /**
   * Cuts a connection when the client has sent so many bytes from now on, or this text; that piece is passed on first, so
   * the server acts on it and the client never hears of it. With `'before'` it is not passed on. Happens once.
   */
  cutAfter(what: number | string, when?: 'after' | 'before'): Promise<void>;
}

interface Trigger {
  readonly what: number | string;
  readonly when: 'after' | 'before';
  readonly fire: () => void;
  seen: number;
}

interface State {
  isRefusing: boolean;
  isBlackhole: boolean;
  delayMs: number;
  trigger: Trigger | undefined;
}

/** A proxy on 127.0.0.1 that can do to a connection what networks do. */
export async function startTcpProxy(target: { host?: string; port: number }): Promise<TcpProxy> {
  const pairs = new Set<readonly [Socket, Socket]>();
  const swallowed = new Set<readonly [Socket, Socket]>();
  const state: State = { isRefusing: false, isBlackhole: false, delayMs: 0, trigger: undefined };
  const server = createServer({ noDelay: true, allowHalfOpen: false }, (client) => {
    client.on('error', () => undefined);
    if (state.isRefusing) return void client.resetAndDestroy();
    const upstream = connect({
      host: target.host ?? '127.0.0.1',
      port: target.port,
      noDelay: true,
    });
    const pair = [client, upstream] as const;
    pairs.add(pair);
    if (state.isBlackhole) swallowed.add(pair);
    const cutPair = (): void => pair.forEach((socket) => socket.resetAndDestroy());
    for (const socket of pair) {
      socket.on('error', () => undefined);
      socket.on('close', () => {
        // The other side hears nothing of it while the network is down.
        if (!state.isBlackhole) cutPair();
        pairs.delete(pair);
      });
    }
    client.on('data', (piece) => {
      if (state.isBlackhole) return void swallowed.add(pair);
      const hit = hitsTrigger(state, piece);
      if (hit?.when === 'before') return cutPair();
      pass(upstream, piece, state.delayMs);
      // The server answers into a connection that is not there any more.
      if (hit?.when === 'after') upstream.prependOnceListener('data', cutPair);
    });
    upstream.on('data', (piece) => {
      if (state.isBlackhole) swallowed.add(pair);
      else pass(client, piece, state.delayMs);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return makeProxy({ server, port, pairs, swallowed, state });
}

function makeProxy(parts: {
  server: ReturnType<typeof createServer>;
  port: number;
  pairs: Set<readonly [Socket, Socket]>;
  swallowed: Set<readonly [Socket, Socket]>;
  state: State;
}): TcpProxy {
  const { server, port, pairs, swallowed, state } = parts;
  const cutAll = (those: Iterable<readonly [Socket, Socket]>): void => {
    for (const pair of those) pair.forEach((socket) => socket.resetAndDestroy());
  };
  return {
    port,
    through(url) {
      const changed = new URL(url);
      changed.host = `127.0.0.1:${port}`;
      return changed.href;
    },
    get connections() {
      return pairs.size;
    },
    cut: () => cutAll(pairs),
    blackhole() {
      state.isBlackhole = true;
    },
    refuse() {
      state.isRefusing = true;
      cutAll(pairs);
    },
    restore() {
      state.isRefusing = false;
      state.isBlackhole = false;
      cutAll(swallowed);
      swallowed.clear();
    },
    delay(ms) {
      state.delayMs = ms;
    },
    async cutAfter(what, when = 'after') {
      await new Promise<void>((resolve) => {
        state.trigger = { what, when, fire: resolve, seen: 0 };
      });
    },
    async [Symbol.asyncDispose]() {
      state.isBlackhole = false;
      cutAll(pairs);
      server.close();
      await once(server, 'close');
    },
  };
}

/** The trigger when this piece sets it off; it is then used up. */
function hitsTrigger(state: State, piece: Buffer): Trigger | undefined {
  const { trigger } = state;
  if (trigger === undefined) return undefined;
  trigger.seen += piece.length;
  const isHit =
    typeof trigger.what === 'number' ? trigger.seen >= trigger.what : piece.includes(trigger.what);
  if (!isHit) return undefined;
  state.trigger = undefined;
  trigger.fire();
  return trigger;
}

function pass(to: Socket, piece: Buffer, delayMs: number): void {
  if (delayMs === 0) to.write(piece);
  else setTimeout(() => to.writable && to.write(piece), delayMs);
}
