import { readBacklog, sampleBacklog, type FullBacklog } from '#db/backlog.ts';
import type { Database } from '#db/client.ts';
import type { Logger } from '#runtime/logger.ts';
import { startLoop } from '#runtime/loop.ts';

export interface AdmissionOptions {
  readonly db: Database;
  readonly logger?: Pick<Logger, 'warn' | 'info'>;
  /** How often the sample is read (1000). */
  readonly intervalMs?: number;
}

/** Back-pressure: which topics take no publishes because a subscription has too much waiting. */
export interface Admission extends AsyncDisposable {
  /** The backlog that a publish to this topic has to wait for; undefined: it may go on. */
  fullBacklog(topicId: number): FullBacklog | undefined;
  /** Reads the sample now. */
  refresh(): Promise<void>;
  stop(): Promise<void>;
}

/**
 * Reads the leader's sample of the backlog again and again; samples itself while nobody else does. What was read last goes
 * on to hold while the database is away: then nothing can be published anyway.
 */
export function createAdmission(options: AdmissionOptions): Admission {
  const { db, logger, intervalMs = 1000 } = options;
  let full = new Map<number, FullBacklog>();
  const refresh = async (): Promise<void> => {
    let reading = await readBacklog(db);
    if (reading.isStale && (await sampleBacklog(db))) reading = await readBacklog(db);
    full = new Map(reading.full.map((each) => [each.topic_id, each]));
  };
  const loop = startLoop({
    name: 'admission',
    intervalMs,
    onTick: refresh,
    ...(logger && { logger }),
  });
  return {
    fullBacklog: (topicId) => full.get(topicId),
    refresh,
    stop: () => loop.stop(),
    [Symbol.asyncDispose]: () => loop.stop(),
  };
}
