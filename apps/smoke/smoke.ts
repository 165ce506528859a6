import { randomUUID } from 'node:crypto';

export interface SmokeOptions {
  /** Where the API is, without a path. */
  readonly brokerUrl: string;
  /** A key with scope admin. */
  readonly apiKey: string;
  /** Ends the attempt; what was made is removed all the same. */
  readonly signal: AbortSignal;
  readonly say: (line: string) => void;
}

interface Message {
  readonly lease_id: string;
  readonly event_id: string;
  readonly event: { readonly data: unknown };
}

/**
 * Publishes one event to a topic of its own, receives it, compares it and acks it, then removes topic and subscription.
 * Throws with the request and the answer where something is not as it should be.
 */
export async function smoke(options: SmokeOptions): Promise<void> {
  const { say, signal } = options;
  const name = `smoke-${randomUUID()}`;
  const call = caller(options);
  const started = performance.now();
  try {
    await call(signal, 'PUT', `topics/${name}`, { retention_seconds: 3600 });
    await call(signal, 'PUT', `subscriptions/${name}`, { topic: name, type: 'pull' });
    const data = { text: `ünïcode ${name}`, number: 1.5 };
    const published = await call(signal, 'POST', `topics/${name}/events`, {
      type: 'smoke.test',
      source: '/smoke',
      data,
    });
    const { id } = published as { id: string };
    say(`published ${id}`);
    const received = await call(signal, 'POST', `subscriptions/${name}/receive`, {
      max_messages: 10,
      wait_seconds: 20,
    });
    const { messages } = received as { messages: Message[] };
    const [message] = messages;
    if (messages.length !== 1 || message?.event_id !== id) {
      throw new Error(`published ${id}, and received ${JSON.stringify(messages)}`);
    }
    if (JSON.stringify(message.event.data) !== JSON.stringify(data)) {
      throw new Error(`published ${JSON.stringify(data)}, and received ${JSON.stringify(message)}`);
    }
    await call(signal, 'POST', `subscriptions/${name}/ack`, { lease_ids: [message.lease_id] });
    say(`received and acked it ${Math.round(performance.now() - started)} ms after the start`);
  } finally {
    // not with the signal: what is there after a failure goes too
    const cleaning = AbortSignal.timeout(15_000);
    await call(cleaning, 'DELETE', `subscriptions/${name}`).catch(ignore);
    await call(cleaning, 'DELETE', `topics/${name}`).catch(ignore);
  }
}

// Its failure would hide the one that is being told.
function ignore(): void {}

function caller({ brokerUrl, apiKey }: SmokeOptions) {
  return async (
    signal: AbortSignal,
    method: 'PUT' | 'POST' | 'DELETE',
    path: string,
    body?: unknown,
  ): Promise<unknown> => {
    const url = new URL(`/api/v1/${path}`, brokerUrl);
    const answer = await fetch(url, {
      method,
      headers: {
        authorization: `Bearer ${apiKey}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(method === 'POST' ? { 'idempotency-key': randomUUID() } : {}),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal,
    }).catch((error: unknown) => {
      throw new Error(`${method} ${url.href}: ${reasonOf(error)}`, { cause: error });
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${url.href}: ${answer.status} ${text}`);
    return text === '' ? undefined : (JSON.parse(text) as unknown);
  };
}

function reasonOf(error: unknown): string {
  const { cause } = error as Error;
  return cause instanceof Error ? cause.message : String(error);
}
