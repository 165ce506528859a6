import type { Database } from '#db/client.ts';
import type { PushSecretRow } from '#db/push-secrets.ts';
import { putSubscription, type PushSettings } from '#db/subscriptions.ts';

let sequence = 0;

export interface PushOverrides extends Partial<PushSettings> {
  /** Name of the topic. */
  readonly topic: string;
  readonly name?: string;
  readonly retry_client_errors?: boolean;
  readonly secret?: PushSecretRow;
}

/** A push subscription with valid defaults, made as the API makes it; its id and name. */
export async function aPushSubscription(
  db: Database,
  { topic, name = `push-${++sequence}`, secret, retry_client_errors, ...push }: PushOverrides,
): Promise<{ readonly id: number; readonly name: string }> {
  const made = await putSubscription(db, {
    name,
    topic,
    type: 'push',
    settings: {
      filter: null,
      visibility_timeout_seconds: 30,
      max_attempts: 10,
      minimum_backoff_ms: 1000,
      maximum_backoff_ms: 60_000,
      backoff_multiplier: 2,
      retry_client_errors: retry_client_errors ?? false,
      backpressure: false,
      on_expiry: 'drop',
      push: {
        endpoint: 'https://hooks.example/orders',
        mode: 'cloudevents_binary',
        headers: {},
        timeout_ms: 15_000,
        ...push,
      },
    },
    sealSecret: () => secret ?? { key_id: null, sealed: Buffer.alloc(32, 1) },
  });
  if (!('id' in made)) throw new Error(made.status);
  return { id: made.id, name };
}
