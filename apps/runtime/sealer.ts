import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';

/** What is kept of something that was sealed. */
export interface Sealed {
  /** Names the key, and tells nothing about it; null: there was none, and `sealed` is the plain bytes. */
  readonly keyId: string | null;
  readonly sealed: Buffer;
}

export interface Sealer {
  /** Of the key that seals; null without one. */
  readonly keyId: string | null;
  /** `context` says what the bytes belong to: opened in another one, they are refused. */
  seal(plain: Buffer, context: string): Sealed;
  /** Throws `SealError` for another key, another context, and bytes that were changed. */
  open(sealed: Buffer, keyId: string | null, context: string): Buffer;
}

/** It cannot be opened, and why. */
export class SealError extends Error {
  override name = 'SealError';
}

const algorithm = 'aes-256-gcm';
const keyBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;

/**
 * Encrypts small things that are kept elsewhere: AES-256-GCM with a random nonce (NIST SP 800-38D section 8.2.2) and the context
 * as associated data; what comes out is nonce, text and tag. `keys`: one, or several with commas between, each 32 bytes in
 * base64. The first seals, all of them open, so that one key can take the place of another while both are in use. Without any
 * it keeps the plain bytes, and what was kept so is opened by whoever has a key later. Throws `SealError` for what is no key.
 */
export function createSealer(keys: string | undefined): Sealer {
  if (keys === undefined) {
    return {
      keyId: null,
      seal: (plain) => ({ keyId: null, sealed: plain }),
      open: (sealed, keyId) => {
        if (keyId === null) return sealed;
        throw new SealError(`sealed with a key (id ${keyId}), and there is none here`);
      },
    };
  }
  const secrets = new Map<string, Buffer>();
  for (const key of splitKeys(keys)) addKey(secrets, key);
  const [first] = secrets;
  if (first === undefined) throw new SealError('there is no key');
  const [ownId, own] = first;
  return {
    keyId: ownId,
    seal: (plain, context) => ({ keyId: ownId, sealed: encrypt(own, plain, context) }),
    open: (sealed, keyId, context) => {
      if (keyId === null) return sealed;
      const secret = secrets.get(keyId);
      if (secret !== undefined) return decrypt(secret, sealed, context);
      const ids = [...secrets.keys()];
      const here =
        ids.length === 1 ? `the one here is ${ownId}` : `those here are ${ids.join(', ')}`;
      throw new SealError(`sealed with another key (id ${keyId}; ${here})`);
    },
  };
}

/** The keys of a text that has commas between them. */
export function splitKeys(text: string): string[] {
  return text.split(',').map((key) => key.trim());
}

function addKey(secrets: Map<string, Buffer>, key: string): void {
  const secret = Buffer.from(key, 'base64');
  if (secret.length !== keyBytes) throw new SealError(`a key is ${keyBytes} bytes in base64`);
  const id = createHash('sha256').update(secret).digest('hex').slice(0, 8);
  // the id is all that a row knows of its key
  if (secrets.has(id)) throw new SealError(`two of the keys are the same (id ${id})`);
  secrets.set(id, secret);
}

function encrypt(key: Buffer, plain: Buffer, context: string): Buffer {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv(algorithm, key, nonce, { authTagLength: tagBytes });
  cipher.setAAD(Buffer.from(context));
  const text = Buffer.concat([cipher.update(plain), cipher.final()]);
  return Buffer.concat([nonce, text, cipher.getAuthTag()]);
}

function decrypt(key: Buffer, sealed: Buffer, context: string): Buffer {
  const textEnd = sealed.length - tagBytes;
  if (textEnd < nonceBytes) throw new SealError('too short to be anything that was sealed');
  const nonce = sealed.subarray(0, nonceBytes);
  const decipher = createDecipheriv(algorithm, key, nonce, { authTagLength: tagBytes });
  decipher.setAAD(Buffer.from(context));
  decipher.setAuthTag(sealed.subarray(textEnd));
  try {
    return Buffer.concat([decipher.update(sealed.subarray(nonceBytes, textEnd)), decipher.final()]);
  } catch (cause) {
    throw new SealError('it was changed, or does not belong here', { cause });
  }
}
