import Type, { type Static } from 'typebox';
import { statusProblemCodes } from '../status-problems.ts';

const nullableText = Type.Unsafe<string | null>({ type: ['string', 'null'] });
const nullableNumber = Type.Unsafe<number | null>({ type: ['number', 'null'] });

const SubscriptionStatus = Type.Object({
  topic: Type.String(),
  subscription: Type.String(),
  type: Type.String({ description: 'pull or push' }),
  state: Type.String({ description: 'active, paused or disabled' }),
  waiting_events: Type.Number(),
  leased_events: Type.Number(),
  dead_letters: Type.Number(),
  oldest_waiting_seconds: nullableNumber,
  max_backlog: Type.Number({ description: 'Of the topic.' }),
});

export const Status = Type.Object({
  problems: Type.Array(
    Type.Object({
      code: Type.Enum([...statusProblemCodes]),
      message: Type.String({ description: 'For people.' }),
    }),
    { description: 'What is wrong, the worst first; empty when nothing is known to be.' },
  ),
  at: Type.String({ description: 'When this was so, by the clock of the database.' }),
  version: Type.String({ description: 'Of the replica that answers.' }),
  instance: Type.String({ description: 'The replica that answers.' }),
  server_version: Type.String({ description: 'Of PostgreSQL.' }),
  schema_version: Type.String({ description: 'The last migration.' }),
  processes: Type.Array(
    Type.Object({
      instance: Type.String(),
      service: Type.String(),
      version: Type.String(),
      host: Type.String(),
      pid: Type.Integer(),
      started_at: Type.String(),
      heartbeat_age_seconds: Type.Number(),
      state: Type.String({
        description:
          'alive; silent: not heard of for 10 s; gone: a worker whose leases were taken over.',
      }),
    }),
  ),
  leader: Type.Object({
    holder: nullableText,
    term: Type.String(),
    elected_at: nullableText,
    heartbeat_age_seconds: nullableNumber,
  }),
  backlog: Type.Object(
    {
      waiting_events: Type.Number(),
      leased_events: Type.Number(),
      dead_letters: Type.Number(),
      oldest_waiting_seconds: nullableNumber,
      sample_age_seconds: nullableNumber,
    },
    { description: 'Of all subscriptions, by the last sample of the leader.' },
  ),
  subscriptions: Type.Array(SubscriptionStatus, {
    description: 'By the same sample; those with most waiting first, 20 at most.',
  }),
  subscriptions_total: Type.Integer({ description: 'How many there are.' }),
});
export type Status = Static<typeof Status>;

/** Readiness, with what was looked at; the names of the checks are for people. */
export const Health = Type.Object({
  status: Type.String({ description: 'ready, not_ready or draining' }),
  service: Type.String(),
  version: Type.String(),
  checks: Type.Array(
    Type.Object({
      name: Type.String(),
      status: Type.String({ description: 'ok, failed or timeout' }),
    }),
  ),
});
