import type { Dispatcher } from 'undici';
import type { PushFailure } from '#runtime/metrics.ts';
import type { EndpointConnection, EndpointConnections } from './endpoint-connections.ts';
import type { EndpointResult } from './endpoint-request.ts';
import { failureReason, failureText } from './request-failure.ts';
import { retryAfterMs } from './retry-after.ts';

/** Of an answer's body: read at most, and kept. */
const BODY_BYTES_MAX = 16_384;
const KEPT_BYTES_MAX = 1024;
const NOTHING = Buffer.alloc(0);

export interface PendingRequestOptions {
  readonly timeoutMs: number;
  readonly connection: EndpointConnection;
  readonly connections: EndpointConnections;
  /** Those that the same signal ends. */
  readonly abortedTogether: Set<PendingRequest> | undefined;
}

/**
 * One request on its way, which undici tells about its answer. From the end of the answer's headers on the status decides,
 * whatever becomes of the body: the endpoint has spoken, and to send the event again would say it twice.
 */
export class PendingRequest implements Dispatcher.DispatchHandler {
  readonly result: Promise<EndpointResult>;
  readonly #resolve: (result: EndpointResult) => void;
  readonly #options: PendingRequestOptions;
  readonly #startedAt = performance.now();
  readonly #deadline: NodeJS.Timeout;
  #isOver = false;
  #status: number | undefined;
  #retryAfterMs: number | undefined;
  #response = NOTHING;
  #bytes = 0;

  constructor(options: PendingRequestOptions) {
    const { promise, resolve } = Promise.withResolvers<EndpointResult>();
    this.result = promise;
    this.#resolve = resolve;
    this.#options = options;
    this.#deadline = setTimeout(timeOut, options.timeoutMs, this);
    options.abortedTogether?.add(this);
  }

  onRequestStart(): void {
    // Asked for by undici; whatever ends the request early ends its connection.
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Readonly<Record<string, string | string[] | undefined>>,
  ): void {
    // 1xx: the answer is yet to come
    if (this.#isOver || status < 200) return;
    this.#status = status;
    this.#retryAfterMs = retryAfterMs(firstOf(headers['retry-after']), {
      date: firstOf(headers['date']),
      nowMs: performance.timeOrigin + performance.now(),
    });
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#isOver) return;
    const missing = KEPT_BYTES_MAX - this.#response.length;
    // A copy: the chunk is a view of all that was read from the socket.
    if (missing > 0) {
      this.#response = Buffer.concat([this.#response, chunk.subarray(0, missing)]);
    }
    this.#bytes += chunk.length;
    if (this.#bytes > BODY_BYTES_MAX) this.#stop('the body is long enough', 'other');
  }

  onResponseEnd(): void {
    if (this.#isOver || this.#status === undefined) return;
    const { connections, connection } = this.#options;
    // An answer that came before all was read: whether the rest will ever be read is not known.
    if (!connection.isFlushed) return this.#stop('answered early', 'other');
    connections.release(connection);
    this.#end({ kind: 'answer', status: this.#status, response: this.#response });
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    if (!this.#isOver) this.#stop(failureText(error), failureReason(error));
  }

  timeOut(): void {
    this.#stop(`timeout after ${this.#options.timeoutMs} ms`, 'timeout');
  }

  abort(): void {
    this.#stop('aborted', 'aborted');
  }

  /** Ends it and its connection: with the status if there is one, else with that fault. */
  #stop(fault: string, reason: PushFailure): void {
    const { connections, connection } = this.#options;
    if (this.#status === undefined) this.#end({ kind: 'failure', error: fault, reason });
    else this.#end({ kind: 'answer', status: this.#status, response: this.#response });
    connections.discard(connection, new Error(fault));
  }

  #end(
    end:
      | { readonly kind: 'answer'; readonly status: number; readonly response: Buffer }
      | { readonly kind: 'failure'; readonly error: string; readonly reason: PushFailure },
  ): void {
    this.#isOver = true;
    clearTimeout(this.#deadline);
    this.#options.abortedTogether?.delete(this);
    const durationMs = Math.round(performance.now() - this.#startedAt);
    this.#resolve(
      end.kind === 'answer'
        ? { ...end, retryAfterMs: this.#retryAfterMs, durationMs }
        : { ...end, durationMs },
    );
  }
}

function timeOut(pending: PendingRequest): void {
  pending.timeOut();
}

function firstOf(value: string | string[] | undefined): string | undefined {
  return typeof value === 'object' ? value[0] : value;
}
