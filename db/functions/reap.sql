-- Takes back the leases of one topic that ran out.
-- SKIP LOCKED: whoever is settling right now holds the row, and a settle that comes before the reap is accepted.
-- Starts at a mark on lease_expires_at, for the same reason as claim does.
-- Returns the events taken back, those that died, the subscriptions with something to claim, whether more is overdue,
-- the next mark, and of which subscriptions how many died.
-- Dropped first, because the release before returned fewer columns; in the transaction of all definitions, so that no call finds it gone.
drop function if exists broker.reap(int, bigint, int, timestamptz);
create or replace function broker.reap(
  p_topic_id int, p_term bigint, p_limit int, p_mark timestamptz
) returns table (
  expired_events int, dead_events int, woken int[], more boolean, mark timestamptz, dead_subscription_ids int[], dead_counts int[]
)
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_leases broker.expired_lease[];
begin
  perform broker.assert_term(p_term);
  v_now := clock_timestamp();

  select array_agg(row(q.publish_id, q.subscription_id, q.id, q.generation, q.retention_class, q.attempt, q.deferrals, q.bytes,
        q.ordinals, q.lease_expires_at, q.leased_by, broker.fate_of(s.state, s.max_attempts, q.generation, q.attempt, q.event_count)
        )::broker.expired_lease)
      into v_leases
    from (
      select l.* from broker.queue l
       where l.topic_id = p_topic_id and l.lease_expires_at is not null
         and l.lease_expires_at >= p_mark and l.lease_expires_at <= v_now
       order by l.lease_expires_at limit p_limit
         for update skip locked
    ) q
    cross join lateral (
      select s.max_attempts, s.state from broker.subscription s where s.id = q.subscription_id offset 0
    ) s;

  return query
  select r.expired_events, r.dead_events, r.woken, coalesce(cardinality(v_leases), 0) = p_limit,
      (select max(l.lease_expires_at) from unnest(v_leases) l), r.dead_subscription_ids, r.dead_counts
    from broker.return_leases(p_topic_id, v_now, v_leases, 'lease expired') r;
end $$;
