import { once } from 'node:events';
import { Agent, request } from 'node:https';
import { text } from 'node:stream/consumers';

export interface TlsLoad extends Disposable {
  /** The Idempotency-Keys of those that were answered with 202. */
  readonly accepted: readonly string[];
  /** Ends it, waits for what is under way, and resolves with what went wrong, in words. */
  stop(): Promise<string[]>;
}

export interface TlsLoadOptions {
  readonly host: string;
  readonly port: number;
  /** The name that the certificate has to be for. */
  readonly servername: string;
  /** Certificates that are trusted: of before and after. */
  readonly ca: readonly string[];
  /** Publishes under way at a time (4). */
  readonly width?: number;
}

/** So many end it: the first ones say what is wrong. */
const failuresMax = 20;
let last = 0;

/** Publishes over TLS, event after event, over connections that are kept; each checks the certificate. Nothing is sent again. */
export function startTlsLoad(options: TlsLoadOptions): TlsLoad {
  const { host, port, servername, ca, width = 4 } = options;
  const agent = new Agent({ keepAlive: true, ca: [...ca], servername });
  const accepted: string[] = [];
  const failed: string[] = [];
  let isStopped = false;
  const publish = async (): Promise<void> => {
    while (!isStopped && failed.length < failuresMax) {
      last += 1;
      const key = `tls-${last}`;
      try {
        const headers = { host: servername, 'idempotency-key': key };
        const path = '/api/v1/topics/orders/events';
        const asked = request({ agent, host, port, path, method: 'POST', headers });
        asked.end('{"type":"load"}');
        const [response] = await once(asked, 'response');
        const body = await text(response);
        if (response.statusCode === 202) accepted.push(key);
        else failed.push(`${key}: ${response.statusCode} ${body}`);
      } catch (error) {
        failed.push(`${key}: ${String(error)}`);
      }
    }
  };
  const loops = Array.from({ length: width }, publish);
  return {
    accepted,
    async stop() {
      isStopped = true;
      await Promise.all(loops);
      return failed;
    },
    [Symbol.dispose]() {
      isStopped = true;
      agent.destroy();
    },
  };
}
