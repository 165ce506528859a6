import type { Wakeups } from '#db/wakeups.ts';
import { eventually } from './eventually.ts';

/** Waits until all of them hear what is told: what is told before is lost. */
export async function untilListening(...all: readonly Wakeups[]): Promise<void> {
  const look = (): void => {
    if (!all.every((each) => each.listening)) throw new Error('not listening yet');
  };
  await eventually(look, { timeoutMs: 10_000 });
}
