import type { PushFailure } from '#runtime/metrics.ts';

/** One POST. */
export interface EndpointRequest {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Buffer;
  /** For all of it: look-up, connection, request and answer. */
  readonly timeoutMs: number;
  /** Ends it early, as a failure. */
  readonly signal?: AbortSignal;
}

export type EndpointResult =
  | {
      readonly kind: 'answer';
      readonly status: number;
      /** `Retry-After`, at most an hour. */
      readonly retryAfterMs: number | undefined;
      /** The first 1,024 bytes of the body, as they came: nothing is decompressed. */
      readonly response: Buffer;
      readonly durationMs: number;
    }
  | {
      readonly kind: 'failure';
      /** In a few words that tell nothing of what was sent. */
      readonly error: string;
      readonly reason: PushFailure;
      readonly durationMs: number;
    };
