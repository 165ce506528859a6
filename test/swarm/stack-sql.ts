import type { Sql } from '#test/support/ledger-scenario.ts';

import type { Lab } from './lab.ts';

/**
 * Asks the PostgreSQL of a stack, wherever its task runs, by psql in its container: the network that it listens on is closed to us, and this works
 * also while its host is cut off. `service`: with the stack's name before it.
 */
export function stackSql(lab: Lab, service: string): Sql {
  return async (text, parameters = []) => {
    const rows = `select coalesce(json_agg(row), '[]') from (${withLiterals(text, parameters)}) row`;
    const psql = ['psql', '--no-psqlrc', '--quiet', '--tuples-only', '--no-align'];
    const options = ['--username', 'postgres', '--dbname', 'broker', '--command', rows];
    const [n, container] = await find(lab, service);
    return JSON.parse(await lab.docker(n, 'exec', container, ...psql, ...options));
  };
}

async function find(lab: Lab, service: string): Promise<readonly [number, string]> {
  for (const n of lab.numbers) {
    if (!lab.host(n).isRunning) continue;
    const [container] = await lab.containersOf(service, n);
    if (container !== undefined) return [n, container];
  }
  throw new Error(`no container of ${service} runs`);
}

/** psql takes no parameters with a single command. */
function withLiterals(text: string, parameters: readonly unknown[]): string {
  return text.replaceAll(/\$(\d+)/g, (_, n: string) => literal(parameters[Number(n) - 1]));
}

function literal(value: unknown): string {
  if (!Array.isArray(value)) return `'${String(value).replaceAll("'", "''")}'`;
  const members = value.map((each) => JSON.stringify(String(each)));
  return literal(`{${members.join(',')}}`);
}
