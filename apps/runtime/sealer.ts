import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';

/** What is kept of something that was sealed. */
export interface Sealed {
  /** Names the key, and tells nothing about it; null: there was none, and `sealed` is the plain bytes. */
  readonly keyId: string | null;
  readonly sealed: Buffer;
}

export interface Sealer {
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
 * as associated data; what comes out is nonce, text and tag. `key`: 32 bytes in base64. Without one it keeps the plain bytes,
 * and what was kept so is opened by whoever has a key later.
 */
export function createSealer(key: string | undefined): Sealer {
  if (key === undefined) {
    return {
      seal: (plain) => ({ keyId: null, sealed: plain }),
      open: (sealed, keyId) => {
        if (keyId === null) return sealed;
        throw new SealError(`sealed with a key (id ${keyId}), and there is none here`);
      },
    };
  }
  const secret = Buffer.from(key, 'base64');
  if (secret.length !== keyBytes) throw new SealError(`a key is ${keyBytes} bytes in base64`);
  const ownId = createHash('sha256').update(secret).digest('hex').slice(0, 8);
  return {
    seal: (plain, context) => ({ keyId: ownId, sealed: encrypt(secret, plain, context) }),
    open: (sealed, keyId, context) => {
      if (keyId === null) return sealed;
      if (keyId !== ownId) {
        throw new SealError(`sealed with another key (id ${keyId}; the one here is ${ownId})`);
      }
      return decrypt(secret, sealed, context);
    },
  };
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
