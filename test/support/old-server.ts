import { inject } from 'vitest';
import { query } from './database.ts';
import { eventually } from './eventually.ts';

/** Nothing is taken over in the first 5 s of a server, and the tests may have started theirs just now. */
export async function untilServerIsOld(): Promise<void> {
  const { adminUrl } = inject('postgres');
  const look = async (): Promise<void> => {
    const [row] = await query<{ is_old: boolean }>(
      adminUrl,
      `select clock_timestamp() > pg_postmaster_start_time() + interval '5.1 seconds' as is_old`,
    );
    if (row?.is_old !== true) throw new Error('the server has just been started');
  };
  await eventually(look, { timeoutMs: 10_000, intervalMs: 100, what: 'a server that is 5 s old' });
}
