import Type, { type Static } from 'typebox';

export const JobParams = Type.Object({ id: Type.String({ pattern: '^[0-9]{1,19}$' }) });

export const CreatedJob = Type.Object({ job_id: Type.String() });

export const Job = Type.Object({
  id: Type.String(),
  type: Type.String({ description: 'redrive' }),
  state: Type.String({ description: 'waiting, running, succeeded or failed' }),
  topic: Type.String(),
  subscription: Type.String(),
  total: Type.Integer({ description: 'Dead letters that there were when the job was made.' }),
  done: Type.Integer(),
  progress: Type.Number({ description: 'From 0 to 1.' }),
  rate_per_second: Type.Unsafe<number | null>({
    type: ['integer', 'null'],
    description: 'Events in a second at most; null: as fast as it goes.',
  }),
  error: Type.Unsafe<string | null>({ type: ['string', 'null'] }),
  created_at: Type.String(),
  updated_at: Type.String(),
  finished_at: Type.Unsafe<string | null>({ type: ['string', 'null'] }),
});
export type Job = Static<typeof Job>;
