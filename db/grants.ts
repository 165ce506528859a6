import { createHash } from 'node:crypto';
import { readFile, readdir } from 'node:fs/promises';
import { type Kysely, sql } from 'kysely';

const folder = new URL('grants/', import.meta.url);

/**
 * Grants what the roles of the processes may. Each file of grants/ belongs to the role `broker_<file>`, and public.sql to all of
 * them. Who may make roles makes these (deploy/postgres/roles.sql); one that is missing is passed by, and without any,
 * everything belongs to one role as it ever did. Writes nothing where nothing has changed since the last time: neither the files,
 * nor the roles, nor what anybody was granted by hand.
 */
export async function applyGrants(db: Kysely<unknown>, say: (line: string) => void): Promise<void> {
  const files = (await readdir(folder)).filter((file) => file.endsWith('.sql')).toSorted();
  const { rows } = await sql<{ name: string }>`
    select rolname as name from pg_roles where rolname = any(${files.map(roleOf)}::text[]) order by 1`.execute(
    db,
  );
  const roles = new Set(rows.map((row) => row.name));
  if (roles.size === 0) return;
  const wanted = files.filter((file) => file === 'public.sql' || roles.has(roleOf(file)));
  const texts = await Promise.all(
    wanted.map(async (file) => readFile(new URL(file, folder), 'utf8')),
  );
  const fingerprint = async (): Promise<string> =>
    createHash('sha256')
      .update(JSON.stringify([texts, await readPrivileges(db)]))
      .digest('hex');
  const known = await sql<{ hash: string }>`
    select hash from broker.definition where path = 'grants'`.execute(db);
  if (known.rows[0]?.hash === (await fingerprint())) return;
  for (const text of texts) await sql.raw(text).execute(db);
  await sql`insert into broker.definition (path, hash) values ('grants', ${await fingerprint()})
    on conflict (path) do update set hash = excluded.hash, applied_at = clock_timestamp()`.execute(
    db,
  );
  say(`granted to ${[...roles].join(', ')}`);
}

function roleOf(file: string): string {
  return `broker_${file.replace(/\.sql$/, '')}`;
}

/** Everything that anybody may in this schema. A table without an entry is its owner's alone; a function is everybody's. */
async function readPrivileges(db: Kysely<unknown>): Promise<readonly string[]> {
  const { rows } = await sql<{ entry: string }>`
    select entry from (
      select concat_ws(' ', 'schema', n.oid, n.nspacl) from pg_namespace n where n.nspname = 'broker'
      union all
      select concat_ws(' ', 'relation', c.oid, c.relacl) from pg_class c
       where c.relnamespace = 'broker'::regnamespace and c.relacl is not null
      union all
      select concat_ws(' ', 'column', a.attrelid, a.attnum, a.attacl) from pg_attribute a
        join pg_class c on c.oid = a.attrelid
       where c.relnamespace = 'broker'::regnamespace and a.attacl is not null
      union all
      select concat_ws(' ', 'function', p.oid, p.proacl) from pg_proc p where p.pronamespace = 'broker'::regnamespace
      union all
      select concat_ws(' ', 'default', d.defaclrole, d.defaclnamespace, d.defaclobjtype, d.defaclacl) from pg_default_acl d
    ) as privileges(entry) order by entry`.execute(db);
  return rows.map((row) => row.entry);
}
