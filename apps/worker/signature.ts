import { createHmac } from 'node:crypto';

export interface SignedContent {
  /** `webhook-id` */
  readonly id: string;
  /** `webhook-timestamp`: seconds since 1970. */
  readonly timestamp: number;
  /** Exactly what is sent. */
  readonly body: string | Buffer;
}

/** `webhook-signature` of a request by Standard Webhooks 1.0.0, symmetric (`v1`): HMAC-SHA256 with the secret's bytes. */
export function sign(secret: Buffer, { id, timestamp, body }: SignedContent): string {
  const hmac = createHmac('sha256', secret).update(`${id}.${timestamp}.`).update(body);
  return `v1,${hmac.digest('base64')}`;
}
