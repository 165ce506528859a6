import { HttpClient } from './http-client.ts';

export interface Published {
  /** In the event's data, and in its Idempotency-Key. */
  readonly n: number;
  /** 0: no answer came. */
  readonly status: number;
  readonly detail: string;
}

export interface PublishLoad extends Disposable {
  /** All that have ended so far. */
  readonly published: readonly Published[];
  /** Ends it, and waits for what is under way; resolves with those that were not answered with 202. */
  stop(): Promise<Published[]>;
}

export interface PublishLoadOptions {
  readonly url: string;
  readonly key: string;
  /** Publishes under way at a time (6). */
  readonly width?: number;
}

let last = 0;

/** Publishes event after event, each with a key of its own, over connections that are kept, until it is told to stop. */
export function startPublishLoad({ url, key, width = 6 }: PublishLoadOptions): PublishLoad {
  const client = new HttpClient(key);
  const published: Published[] = [];
  let isStopped = false;
  const publish = async (): Promise<void> => {
    while (!isStopped) {
      last += 1;
      const n = last;
      const headers = { 'idempotency-key': `n-${n}` };
      const answer = await client
        .send(url, { body: { type: 'load', data: { n } }, headers, timeoutMs: 30_000 })
        .then(({ status, text }) => ({ status, detail: text }))
        .catch((error: unknown) => ({ status: 0, detail: String(error) }));
      published.push({ n, ...answer });
    }
  };
  const loops = Array.from({ length: width }, publish);
  return {
    published,
    async stop() {
      isStopped = true;
      await Promise.all(loops);
      return published.filter(({ status }) => status !== 202);
    },
    [Symbol.dispose]() {
      isStopped = true;
      client[Symbol.dispose]();
    },
  };
}
