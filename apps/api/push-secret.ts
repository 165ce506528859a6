import { randomBytes } from 'node:crypto';
import { type PushSecretRow, pushSecretContext } from '#db/push-secrets.ts';
import type { Sealer } from '#runtime/sealer.ts';

/** A new signing secret: 32 random bytes, as people see them and as they are kept. */
export interface NewPushSecret {
  /** `whsec_` and the bytes in base64: https://github.com/standard-webhooks/standard-webhooks */
  readonly text: string;
  /** What is kept is bound to the subscription, and opens for no other. */
  readonly seal: (subscriptionId: number) => PushSecretRow;
}

/** Makes a secret that nobody has seen. */
export function createPushSecret(sealer: Sealer): NewPushSecret {
  const bytes = randomBytes(32);
  return {
    text: `whsec_${bytes.toString('base64')}`,
    seal(subscriptionId) {
      const { keyId, sealed } = sealer.seal(bytes, pushSecretContext(subscriptionId));
      return { key_id: keyId, sealed };
    },
  };
}
