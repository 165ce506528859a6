import { query } from './database.ts';

/** Takes something out of a function of a test's database; throws when it is not in there. `superuserUrl` owns it at least. */
export async function breakFunction(
  databaseUrl: string,
  name: string,
  replacements: readonly (readonly [from: string, to: string])[],
): Promise<void> {
  const [row] = await query<{ definition: string }>(
    databaseUrl,
    'select pg_get_functiondef(to_regproc($1)) as definition',
    [name],
  );
  if (row === undefined) throw new Error(`there is no function ${name}`);
  let { definition } = row;
  for (const [from, to] of replacements) {
    const changed = definition.replaceAll(from, to);
    if (changed === definition) throw new Error(`${name} has no '${from}' to take out`);
    definition = changed;
  }
  await query(databaseUrl, definition);
}
