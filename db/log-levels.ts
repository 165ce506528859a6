import { sql } from 'kysely';
import type { Database } from './client.ts';

/** What can be set for a while; `silent` cannot: who looks for a process that says nothing would not find out why. */
export const logLevels = ['fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const;

/** Processes by what they are; `*` is all that have no level of their own. */
export const logLevelServices = ['*', 'api', 'worker', 'reaper', 'standalone'] as const;

export type SettableLogLevel = (typeof logLevels)[number];
export type LogLevelService = (typeof logLevelServices)[number];

export interface LogLevelRow {
  readonly service: string;
  readonly level: string;
  readonly until: string;
}

export interface LogLevelSettings {
  readonly level: SettableLogLevel;
  /** Up to 86,400; 0 ends what was set before. */
  readonly seconds: number;
}

/** Makes the processes of a service write log lines from this level on, for so long; tells them with the commit. */
export async function setLogLevel(
  db: Database,
  service: LogLevelService,
  { level, seconds }: LogLevelSettings,
): Promise<void> {
  await sql`select broker.set_log_level(${level}, ${service}, ${seconds} * interval '1 second')`.execute(
    db,
  );
}

/** What is set and has not ended. */
export async function listLogLevels(db: Database): Promise<LogLevelRow[]> {
  return db
    .selectFrom('log_level')
    .selectAll()
    .where('until', '>', sql<string>`clock_timestamp()`)
    .orderBy('service')
    .execute();
}

/** What a process of this service has to follow, and for how long still; undefined: its own configuration. */
export async function findLogLevel(
  db: Database,
  service: string,
): Promise<{ readonly level: string; readonly remainingMs: number } | undefined> {
  const { rows } = await sql<{ level: string; remaining_ms: number }>`
    select l.level, (extract(epoch from l.until - now.at) * 1000)::float8 as remaining_ms
      from (select clock_timestamp() as at offset 0) now
      join broker.log_level l on l.until > now.at and l.service in ('*', ${service})
     order by l.service = '*' limit 1`.execute(db);
  const [found] = rows;
  return found && { level: found.level, remainingMs: found.remaining_ms };
}
