import { sql } from 'kysely';
import type { Database } from '#db/client.ts';
import { Candidate } from '#db/leader.ts';
import { createWakeups, type Wakeups } from '#db/wakeups.ts';
import { createMetrics, type Metrics } from '#runtime/metrics.ts';
import { duties, type DutyName } from '../../apps/reaper/duties.ts';
import { Reaper } from '../../apps/reaper/leadership.ts';
import { Outage } from '#runtime/outage.ts';
import type { Duty } from '../../apps/reaper/term.ts';
import { openVerbDatabase } from './verbs.ts';

/** Reapers of this process on a database of their own; disposing ends them all. */
export interface ReaperBench extends AsyncDisposable {
  readonly db: Database;
  readonly wakeups: Wakeups;
  start(holder: string, theirs: Readonly<Record<string, Duty>>): TestReaper;
  /** The term that the database shows. */
  term(): Promise<number>;
  /** Connections of a candidate. */
  connectionsOf(holder: string): Promise<number>;
}

export interface TestReaper {
  readonly reaper: Reaper;
  readonly metrics: Metrics;
  /** What it logged, of whatever level. */
  readonly lines: string[];
  /** A metric as Prometheus reads it. */
  metric(name: string): Promise<string>;
  stop(): Promise<void>;
}

/** Only the duties that are named, the rare ones more often. */
export function only(...names: DutyName[]): Record<string, Duty> {
  return Object.fromEntries(names.map((name) => [name, { ...duties[name], intervalMs: 30 }]));
}

export async function openReaperBench(): Promise<ReaperBench> {
  const database = await openVerbDatabase();
  const { db } = database;
  const wakeups = createWakeups({ db, directUrl: database.url, applicationName: 'wakeups' });
  const running: TestReaper[] = [];
  return {
    db,
    wakeups,
    start(holder, theirs) {
      const started = startReaper({ db, wakeups, url: database.url }, holder, theirs);
      running.push(started);
      return started;
    },
    async term() {
      const row = await db.selectFrom('leader').select('term').executeTakeFirstOrThrow();
      return Number(row.term);
    },
    async connectionsOf(holder) {
      const { rows } = await sql`select from pg_stat_activity
        where application_name = ${`candidate-${holder}`} and datname = current_database()`.execute(
        db,
      );
      return rows.length;
    },
    async [Symbol.asyncDispose]() {
      for (const each of running) await each.stop();
      await wakeups.close();
      await database[Symbol.asyncDispose]();
    },
  };
}

function startReaper(
  on: { readonly db: Database; readonly wakeups: Wakeups; readonly url: string },
  holder: string,
  theirs: Readonly<Record<string, Duty>>,
): TestReaper {
  const { db, wakeups, url } = on;
  const metrics = createMetrics({ service: 'reaper' });
  const lines: string[] = [];
  const write = (_: unknown, line: string): void => void lines.push(line);
  const logger = { info: write, warn: write, error: write } as unknown as ConstructorParameters<
    typeof Reaper
  >[0]['logger'];
  const candidate = new Candidate({
    directUrl: url,
    applicationName: `candidate-${holder}`,
    holder,
    statementTimeoutMs: 5000,
  });
  const reaper = new Reaper({
    candidate,
    term: { db, wakeups, metrics, lookBackMs: 10_000 },
    reapIntervalMs: 30,
    logger,
    outage: new Outage(logger),
    duties: theirs,
    backoffMaxMs: 200,
  });
  let isStopped = false;
  return {
    reaper,
    metrics,
    lines,
    metric: async (name) => metrics.registry.getSingleMetricAsString(name),
    async stop() {
      if (isStopped) return;
      isStopped = true;
      await reaper.stopDuties();
      await reaper.resign();
    },
  };
}
