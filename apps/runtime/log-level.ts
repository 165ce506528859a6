import type { Logger } from './logger.ts';
import { type Loop, startLoop } from './loop.ts';

export interface LogLevelSetting {
  readonly level: string;
  /** How long it holds still, in milliseconds. */
  readonly remainingMs: number;
}

export interface LogLevelOptions {
  readonly logger: Logger;
  /** Of the configuration: holds when nothing is set. */
  readonly level: string;
  /** What is set for processes of this service. */
  readonly read: (service: string) => Promise<LogLevelSetting | undefined>;
  /** Where it is told that something was set. Such a word may be lost. */
  readonly changes: {
    onChange(listener: (kind: string) => void): () => void;
    onReconnect(listener: () => void): () => void;
  };
  /** How often it is looked for all the same (30,000). */
  readonly intervalMs?: number;
}

/** The clocks of two machines do not run alike; who looks too early would find what is about to end. */
const afterEndMs = 50;

/**
 * Keeps the level of a logger as it is set for its service, until that ends. Several may follow with one logger: the change is
 * logged once. With the database away, what was set still ends in time.
 */
export function followLogLevel(options: LogLevelOptions): Loop {
  const { logger, level, read, changes, intervalMs = 30_000 } = options;
  const service = String(logger.bindings()['service']);
  let timer: NodeJS.Timeout | undefined;
  let endsAt = Infinity;
  const loop: Loop = startLoop({
    name: 'log level',
    intervalMs,
    errorBackoffMs: { first: 1000, max: intervalMs },
    wake: (wake) => {
      const unsubscribe = [
        changes.onChange((kind) => {
          if (kind === 'log_level') wake();
        }),
        changes.onReconnect(wake),
        () => clearTimeout(timer),
      ];
      return () => unsubscribe.forEach((each) => each());
    },
    onTick: async () => {
      const askedAt = performance.now();
      const setting = await read(service);
      clearTimeout(timer);
      endsAt = askedAt + (setting?.remainingMs ?? Infinity);
      changeLevel(logger, setting?.level ?? level);
      if (setting === undefined) return;
      timer = setTimeout(() => loop.wake(), setting.remainingMs + afterEndMs);
      timer.unref();
    },
    onError: () => {
      if (performance.now() > endsAt) changeLevel(logger, level);
    },
  });
  return loop;
}

function changeLevel(logger: Logger, level: string): void {
  const before = logger.level;
  if (before === level) return;
  // said whatever the levels are: who reads the log later must know what it cannot have
  logger.level = 'info';
  logger.info({ before, after: level }, 'log level changed');
  logger.level = level;
}
