import type { Client } from './client.ts';

/** The topic of one run and its subscriptions, by the type that each of them is for; null: all events. */
export interface Stage {
  readonly topic: string;
  readonly pulled: readonly string[];
  /** Undefined where the broker may not push to this machine. */
  readonly pushed: { readonly subscription: string; readonly secret: string } | undefined;
  readonly filters: ReadonlyMap<string, string | null>;
}

export interface StageOptions {
  readonly client: Client;
  readonly topic: string;
  /** Of the subscription that gets only some events. */
  readonly type: string;
  /** Where events are pushed to. */
  readonly endpoint: string;
  readonly say: (line: string) => void;
}

export const visibilityTimeoutSeconds = 2;
export const attemptsMax = 6;
/** A busy machine must not look like an endpoint that hangs. */
export const pushTimeoutMs = 2000;

const namesOf = (topic: string) => ({
  all: `${topic}-all`,
  some: `${topic}-some`,
  pushed: `${topic}-pushed`,
});

/** Makes the topic and its subscriptions. */
export async function setUp(options: StageOptions): Promise<Stage> {
  const { client, topic, type } = options;
  const names = namesOf(topic);
  await client.call('PUT', `/topics/${topic}`, { body: '{"retention_seconds": 3600}' });
  const pulled = new Map([
    [names.all, null],
    [names.some, type],
  ]);
  for (const [name, only] of pulled) {
    const filter = only === null ? null : { exact: { type: only } };
    const members = { type: 'pull', visibility_timeout_seconds: visibilityTimeoutSeconds, filter };
    await put(options, name, members);
  }
  const secret = await putPush(options, names.pushed);
  return {
    topic,
    pulled: [...pulled.keys()],
    pushed: secret === undefined ? undefined : { subscription: names.pushed, secret },
    filters: secret === undefined ? pulled : new Map([...pulled, [names.pushed, null]]),
  };
}

/** Takes it all away; what is not there is no error, nor is a broker that is gone. */
export async function cleanUp(client: Client, topic: string): Promise<void> {
  const subscriptions = Object.values(namesOf(topic)).map((name) => `/subscriptions/${name}`);
  for (const path of [...subscriptions, `/topics/${topic}`]) {
    await client.call('DELETE', path, { expected: [404], deadlineMs: 0 }).catch(() => undefined);
  }
}

/** The secret of its signatures; undefined where the broker does not push to addresses of its own machine. */
async function putPush(options: StageOptions, name: string): Promise<string | undefined> {
  const { endpoint, say } = options;
  const push = { endpoint, mode: 'cloudevents_binary', timeout_ms: pushTimeoutMs };
  const { status, text } = await put(options, name, { type: 'push', push }, [422]);
  const answer = JSON.parse(text) as { code?: string; push?: { secret: string } };
  if (answer.push !== undefined) return answer.push.secret;
  if (answer.code !== 'endpoint_not_allowed')
    throw new Error(`push was answered ${status}: ${text}`);
  say('push: left out, because this broker does not push to addresses of this machine.');
  say('      To see it, start the broker with ALLOW_PRIVATE_TARGETS=127.0.0.0/8.');
  return undefined;
}

async function put(
  { client, topic }: StageOptions,
  name: string,
  members: object,
  expected: readonly number[] = [],
): Promise<{ readonly status: number; readonly text: string }> {
  const retryPolicy = {
    max_attempts: attemptsMax,
    minimum_backoff_ms: 50,
    maximum_backoff_ms: 500,
    multiplier: 2,
  };
  const body = JSON.stringify({ topic, retry_policy: retryPolicy, ...members });
  return client.call('PUT', `/subscriptions/${name}`, { body, expected });
}
