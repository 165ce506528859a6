import Type from 'typebox';

const nullableText = Type.Unsafe<string | null>({ type: ['string', 'null'] });
const nullableNumber = Type.Unsafe<number | null>({ type: ['number', 'null'] });

export const Status = Type.Object({
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
});

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
