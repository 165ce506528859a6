import type { Logger } from './logger.ts';
import type { Metrics } from './metrics.ts';
import type { Outage } from './outage.ts';

/** What a process without callers tells of its wake-ups: counts, and one line when they are missing. */
export function observeWakeups(parts: {
  readonly logger: Pick<Logger, 'warn'>;
  readonly metrics: Pick<
    Metrics,
    'recordWakeUps' | 'recordWakeupHeard' | 'recordDatabaseReconnect'
  >;
  readonly outage: Outage;
}) {
  const { logger, metrics, outage } = parts;
  return {
    onSent: (count: number): void => metrics.recordWakeUps('sent', count),
    onReceived: (count: number): void => metrics.recordWakeUps('received', count),
    onEcho: (latencyMs: number): void => metrics.recordWakeupHeard(latencyMs / 1000),
    onProblem: (error: unknown): void => {
      // the database is there, and a pooler in front of it swallows what it says
      const isSwallowed = error instanceof Error && error.name === 'NotificationsLost';
      if (isSwallowed) logger.warn({ err: error }, 'polling instead');
      else outage.failed('wake-ups', error);
    },
    onRecovered: (): void => {
      metrics.recordDatabaseReconnect();
      outage.worked('wake-ups', performance.now());
    },
  };
}
