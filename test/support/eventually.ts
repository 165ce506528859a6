import { setTimeout as delay } from 'node:timers/promises';

export interface EventuallyOptions {
  /** When to give up, in milliseconds (10,000). */
  readonly timeoutMs?: number;
  /** Between the end of a look and the next one (20). */
  readonly intervalMs?: number;
  /** What is waited for; shown when it does not come. */
  readonly what?: string;
}

/** Repeats an assertion until it throws no more, and returns what it returned. After the deadline its last error is thrown. */
export async function eventually<Result>(
  look: () => Result | Promise<Result>,
  options: EventuallyOptions = {},
): Promise<Awaited<Result>> {
  const { timeoutMs = 10_000, intervalMs = 20, what = 'a condition' } = options;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await look();
    } catch (error) {
      if (performance.now() >= deadline) {
        throw new Error(
          `${what} did not come within ${timeoutMs} ms: ${(error as Error).message}`,
          {
            cause: error,
          },
        );
      }
    }
    await delay(intervalMs);
  }
}
