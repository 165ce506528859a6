import type { PublishRequest } from '#db/publish.ts';

/** So many are remembered at most; the oldest are forgotten first. */
const keysMax = 1000;

/**
 * Idempotency keys that somebody else held when they were last tried. A publish with such a key would make all that travel
 * with it wait for the lock timeout, so it is tried alone, one at a time.
 */
export class BlockedKeys {
  /** Whether one is being tried right now. */
  readonly #keys = new Map<string, boolean>();

  /** `probed`: one with the same key is being tried right now. */
  stateOf(topicId: number, request: PublishRequest): 'blocked' | 'probed' | undefined {
    if (this.#keys.size === 0) return undefined;
    const isProbed = this.#keys.get(keyOf(topicId, request) ?? '');
    return isProbed === undefined ? undefined : isProbed ? 'probed' : 'blocked';
  }

  add(topicId: number, request: PublishRequest): void {
    const key = keyOf(topicId, request);
    if (key === undefined) return;
    // one that is tried again and is blocked still
    this.#keys.delete(key);
    this.#keys.set(key, false);
    const [oldest] = this.#keys.keys();
    if (this.#keys.size > keysMax && oldest !== undefined) this.#keys.delete(oldest);
  }

  beginProbe(topicId: number, request: PublishRequest): void {
    const key = keyOf(topicId, request);
    if (key !== undefined) this.#keys.set(key, true);
  }

  /** Forgets the key, unless it has been added again meanwhile. */
  endProbe(topicId: number, request: PublishRequest): void {
    const key = keyOf(topicId, request);
    if (key !== undefined && this.#keys.get(key) === true) this.#keys.delete(key);
  }
}

/** Of a request with keys in several events it cannot be said which of them was blocked. */
function keyOf(topicId: number, request: PublishRequest): string | undefined {
  const key = request.key ?? (request.events.length === 1 ? request.events[0]?.key : undefined);
  return key === undefined ? undefined : `${topicId} ${key.toString('base64')}`;
}
