import type { Database } from '#db/client.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { ApiConfig } from '#runtime/config.ts';
import type { Logger } from '#runtime/logger.ts';
import type { Metrics } from '#runtime/metrics.ts';
import type { Admission } from './publish/admission.ts';
import type { Directory } from './directory.ts';
import type { Publisher } from './publish/publisher.ts';
import type { Receiver } from './receive/receiver.ts';
import type { Settler } from './receive/settler.ts';

/** What the routes of one API process work with. */
export interface AppDependencies {
  readonly config: ApiConfig;
  readonly db: Database;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly directory: Directory;
  readonly wakeups: Wakeups;
  readonly publisher: Publisher;
  readonly receiver: Receiver;
  readonly settler: Settler;
  readonly admission: Admission;
  /** True from the beginning of the shutdown. */
  isDraining(): boolean;
}
