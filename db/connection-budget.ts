import pg from 'pg';
import { connectionConfig } from './client.ts';

/** How many of each are meant to run; one that is not given is not counted. */
export interface Replicas {
  readonly api?: number | undefined;
  readonly worker?: number | undefined;
  readonly reaper?: number | undefined;
}

export interface ConnectionBudgetOptions {
  /** A direct connection to the server, as the role that `migrate` has. */
  readonly databaseUrl: string;
  readonly replicas: Replicas;
  /** Of each process; 0 where a pooler stands between, which holds connections of its own. */
  readonly poolMax: number;
  readonly statementTimeoutMs: number;
}

export interface ConnectionBudget {
  /** Connections that all processes hold at most, in the middle of an update. */
  readonly needed: number;
  /** Connections that the database lets them have. */
  readonly allowed: number;
  /** What does not suffice, with the sum; empty where everything does. */
  readonly faults: readonly string[];
}

/** What a process holds beside its pool: the one that hears wake-ups, and the one that its lock is on. */
export const directConnections = { api: 1, worker: 2, reaper: 2 } as const;

/** Left for psql and exporters. */
const others = 10;
const migrators = 1;

type Service = keyof typeof directConnections;
const services = Object.keys(directConnections) as Service[];

interface Limits {
  readonly max_connections: number;
  readonly reserved: number;
  /** Of the database; -1: none. */
  readonly database_limit: number;
  /** Whether each kind of process logs in as a member of its group, and not all as one role. */
  readonly has_groups: boolean;
}

/** A role that may have so many connections and no more. */
interface LimitedRole {
  readonly name: string;
  /** Its group; null where everything logs in as this one. */
  readonly group: string | null;
  readonly limit: number;
}

/**
 * Compares what the processes of a deployment hold with what the server, the database and the roles allow. An update that
 * starts a replica before it stops one needs room for one more of each.
 */
export async function checkConnectionBudget(
  options: ConnectionBudgetOptions,
): Promise<ConnectionBudget> {
  const { limits, roles } = await readLimits(options);
  const { max_connections: max, reserved, database_limit: databaseLimit } = limits;
  const lines = services.flatMap((service) => lineOf(service, options));
  const processes = lines.reduce((sum, line) => sum + line.connections, 0) + migrators;
  const needed = processes + others;
  const ofServer = max - reserved;
  const allowed = databaseLimit < 0 ? ofServer : Math.min(ofServer, databaseLimit);
  const faults: string[] = [];
  if (needed > allowed) {
    const from =
      allowed === ofServer
        ? `max_connections ${max} less ${reserved} reserved`
        : 'CONNECTION LIMIT of the database';
    faults.push(
      [
        `${needed} connections are needed, and the database allows ${allowed} (${from}):`,
        ...lines.map((line) => line.text),
        `  migrate: ${migrators}`,
        `  psql and exporters: ${others}`,
      ].join('\n'),
    );
  }
  for (const { name, group, limit } of roles) {
    const wanted = group === null ? processes : neededBy(group, options);
    if (wanted <= limit) continue;
    faults.push(
      `${wanted} connections are needed by the role ${name}, and its CONNECTION LIMIT is ${limit}`,
    );
  }
  return { needed, allowed, faults };
}

function countOf(service: Service, { replicas, poolMax }: ConnectionBudgetOptions) {
  const running = replicas[service] ?? 0;
  const each = poolMax + directConnections[service];
  return { running, each, connections: running === 0 ? 0 : (running + 1) * each };
}

function lineOf(service: Service, options: ConnectionBudgetOptions) {
  const { running, each, connections } = countOf(service, options);
  if (running === 0) return [];
  const direct = directConnections[service];
  const text = `  ${service}: ${running} and 1 during an update, ${each} each (pool ${options.poolMax}, direct ${direct}): ${connections}`;
  return [{ text, connections }];
}

function neededBy(group: string, options: ConnectionBudgetOptions): number {
  if (group === 'broker_owner') return countOf('reaper', options).connections + migrators;
  return countOf(group === 'broker_api' ? 'api' : 'worker', options).connections;
}

async function readLimits(
  options: ConnectionBudgetOptions,
): Promise<{ readonly limits: Limits; readonly roles: readonly LimitedRole[] }> {
  const { databaseUrl: url, statementTimeoutMs } = options;
  const applicationName = 'broker-migrate-budget';
  const client = new pg.Client(connectionConfig({ url, applicationName, statementTimeoutMs }));
  // one that breaks fails the statement, not the process
  client.on('error', () => undefined);
  await client.connect();
  try {
    const {
      rows: [limits],
    } = await client.query<Limits>(`
      select current_setting('max_connections')::int as max_connections,
          current_setting('superuser_reserved_connections')::int
            + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved,
          d.datconnlimit as database_limit,
          exists (
            select from pg_roles r where r.rolname = 'broker_owner' and pg_has_role(session_user, r.oid, 'member')
          ) as has_groups
        from pg_database d where d.datname = current_database()`);
    if (limits === undefined) throw new Error('the database does not know itself');
    // superusers have no such limit
    const { rows: roles } = await client.query<LimitedRole>(
      limits.has_groups
        ? `select r.rolname as name, g.rolname as group, r.rolconnlimit as limit
             from pg_roles r
             join pg_auth_members m on m.member = r.oid
             join pg_roles g on g.oid = m.roleid and g.rolname in ('broker_owner', 'broker_api', 'broker_worker')
            where r.rolcanlogin and not r.rolsuper and r.rolconnlimit >= 0 order by 1`
        : `select r.rolname as name, null as group, r.rolconnlimit as limit
             from pg_roles r where r.rolname = session_user and not r.rolsuper and r.rolconnlimit >= 0`,
    );
    return { limits, roles };
  } finally {
    await client.end();
  }
}
