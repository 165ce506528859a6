import { JsonTraceSerializer, ProtobufTraceSerializer } from '@opentelemetry/otlp-transformer';
import type { ReadableSpan, Span, SpanProcessor } from '@opentelemetry/sdk-trace';
import type { Logger } from './logger.ts';
import { outsideSpan } from './tracing.ts';

/** Why a span was not sent: too many wait, the collector did not take it, it was not there or did not answer, the process ended. */
export type SpanDropReason = 'queue_full' | 'refused' | 'unreachable' | 'timeout' | 'shutdown';

export interface SpanQueueOptions {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly protocol: 'http/protobuf' | 'http/json';
  /** For one request, in milliseconds. */
  readonly timeoutMs: number;
  readonly queueMax: number;
  readonly batchMax: number;
  /** A batch that is not full is sent so long after its first span. */
  readonly delayMs: number;
  readonly onDropped: (reason: SpanDropReason, count: number) => void;
  /** Gets one line when sending begins to fail, and one when it works again. */
  readonly logger: Pick<Logger, 'warn' | 'info'>;
  /** First and longest wait before a batch is sent again (500 and 5000), and how often it is (4). */
  readonly retry?: { readonly firstMs: number; readonly maxMs: number; readonly times: number };
}

const formats = {
  'http/protobuf': { type: 'application/x-protobuf', serializer: ProtobufTraceSerializer },
  'http/json': { type: 'application/json', serializer: JsonTraceSerializer },
};
/** Of OTLP/HTTP: these alone may be sent again. https://opentelemetry.io/docs/specs/otlp/#failures-1 */
const retryableStatus = new Set([429, 502, 503, 504]);
const answerBytesMax = 65_536;

type Sent = 'sent' | { readonly reason: SpanDropReason; readonly isRetryable: boolean };

/**
 * What the SDK's own BatchSpanProcessor and exporter do together, with bounds in everything and each loss counted: theirs keep
 * a process that wants to end alive for as long as a collector hangs or is tried again, and tell nobody what they dropped.
 */
export class SpanQueue implements SpanProcessor {
  readonly #options: SpanQueueOptions;
  readonly #closing = new AbortController();
  #queue: ReadableSpan[] = [];
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<void> | undefined;
  #wakeRetry: (() => void) | undefined;
  #isClosed = false;
  #failedAt: number | undefined;
  #dropped = 0;

  constructor(options: SpanQueueOptions) {
    this.#options = options;
  }

  onStart(): void {
    // Asked for by the SDK: only what has ended is of interest.
  }

  /** The instrumentation of pg puts the database's message there, which may quote a value; its code is in the exception. */
  onEnding(span: Span): void {
    const isForeign = span.instrumentationScope.name.endsWith('/instrumentation-pg');
    if (isForeign && span.status.message !== undefined) span.setStatus({ code: span.status.code });
  }

  onEnd(span: ReadableSpan): void {
    if ((span.spanContext().traceFlags & 1) === 0) return;
    if (this.#isClosed) return this.#drop('shutdown', 1);
    if (this.#queue.length >= this.#options.queueMax) return this.#drop('queue_full', 1);
    this.#queue.push(span);
    if (this.#sending !== undefined) return;
    if (this.#queue.length >= this.#options.batchMax) this.#begin();
    else this.#timer ??= setTimeout(() => this.#begin(), this.#options.delayMs).unref();
  }

  /** Sends what there is, each batch once and until the deadline at the latest. Later spans are dropped. */
  async close(deadline: AbortSignal): Promise<void> {
    this.#isClosed = true;
    const cut = (): void => {
      this.#closing.abort();
      this.#wakeRetry?.();
    };
    if (deadline.aborted) cut();
    deadline.addEventListener('abort', cut, { once: true });
    this.#wakeRetry?.();
    await this.#sending;
    if (this.#queue.length > 0) {
      this.#begin();
      await this.#sending;
    }
    deadline.removeEventListener('abort', cut);
    const { logger } = this.#options;
    if (this.#dropped > 0) logger.warn({ spans: this.#dropped }, 'spans were not sent');
  }

  async forceFlush(): Promise<void> {
    await this.#sending;
  }

  async shutdown(): Promise<void> {
    if (!this.#isClosed) await this.close(AbortSignal.timeout(this.#options.timeoutMs));
  }

  #begin(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#sending ??= outsideSpan(() => this.#sendAll()).finally(() => {
      this.#sending = undefined;
      if (this.#queue.length > 0 && !this.#isClosed) {
        this.#timer = setTimeout(() => this.#begin(), this.#options.delayMs).unref();
      }
    });
  }

  /** Until less than a batch is left; at the end of the process, until nothing is. */
  async #sendAll(): Promise<void> {
    do {
      const batch = this.#queue.splice(0, this.#options.batchMax);
      if (batch.length === 0) return;
      await this.#sendBatch(batch);
    } while (this.#isClosed || this.#queue.length >= this.#options.batchMax);
  }

  async #sendBatch(batch: readonly ReadableSpan[]): Promise<void> {
    const { firstMs, maxMs, times } = this.#options.retry ?? {
      firstMs: 500,
      maxMs: 5000,
      times: 4,
    };
    for (let tries = 0; ; tries += 1) {
      if (this.#closing.signal.aborted) return this.#drop('shutdown', batch.length);
      const sent = await this.#post(batch);
      if (sent === 'sent') return;
      const isLast = !sent.isRetryable || tries === times || this.#isClosed;
      if (isLast) return this.#drop(sent.reason, batch.length);
      const waitMs = Math.min(maxMs, firstMs * 2 ** tries) * (0.5 + Math.random() / 2);
      await this.#wait(waitMs);
    }
  }

  async #post(batch: readonly ReadableSpan[]): Promise<Sent> {
    const { url, headers, protocol, timeoutMs } = this.#options;
    const { type, serializer } = formats[protocol];
    const body = serializer.serializeRequest([...batch]) as Uint8Array<ArrayBuffer> | undefined;
    if (body === undefined) return { reason: 'refused', isRetryable: false };
    const timeout = AbortSignal.timeout(timeoutMs);
    const signal = AbortSignal.any([timeout, this.#closing.signal]);
    try {
      const answer = await fetch(url, {
        method: 'POST',
        headers: { ...headers, 'content-type': type },
        body,
        redirect: 'error',
        signal,
      });
      const { status } = answer;
      if (!answer.ok) {
        await answer.body?.cancel();
        this.#noteFailure(`the collector answered ${status}`);
        return { reason: 'refused', isRetryable: retryableStatus.has(status) };
      }
      await this.#readAnswer(answer);
      this.#noteSuccess();
      return 'sent';
    } catch (error) {
      if (this.#closing.signal.aborted) return { reason: 'shutdown', isRetryable: false };
      this.#noteFailure(timeout.aborted ? `no answer in ${timeoutMs} ms` : error);
      return { reason: timeout.aborted ? 'timeout' : 'unreachable', isRetryable: true };
    }
  }

  /** A collector may take some spans and refuse the others: it says so in a 200. */
  async #readAnswer(answer: Response): Promise<void> {
    const { serializer } = formats[this.#options.protocol];
    const length = Number(answer.headers.get('content-length') ?? Number.NaN);
    if (!(length > 0 && length <= answerBytesMax)) return answer.body?.cancel();
    const bytes = await answer.bytes();
    let refused = 0;
    try {
      refused = Number(serializer.deserializeResponse(bytes).partialSuccess?.rejectedSpans ?? 0);
    } catch {
      // The status says that it was taken; what it says beside that cannot be read.
    }
    if (refused > 0) this.#drop('refused', refused);
  }

  async #wait(waitMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, waitMs).unref();
      this.#wakeRetry = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wakeRetry = undefined;
  }

  #drop(reason: SpanDropReason, count: number): void {
    this.#dropped += count;
    this.#options.onDropped(reason, count);
  }

  #noteFailure(error: unknown): void {
    if (this.#failedAt !== undefined) return;
    this.#failedAt = performance.now();
    this.#options.logger.warn({ err: error }, 'traces cannot be sent, and are dropped');
  }

  #noteSuccess(): void {
    if (this.#failedAt === undefined) return;
    const downMs = Math.round(performance.now() - this.#failedAt);
    this.#failedAt = undefined;
    this.#options.logger.info({ down_ms: downMs }, 'traces are sent again');
  }
}
