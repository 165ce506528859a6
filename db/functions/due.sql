-- The subscriptions of one topic that have something due since a mark, and when the first of it was due.
-- One short probe of queue_claim_idx per subscription. A loose index scan over the queue instead would walk, at each head,
-- every dead entry that a held snapshot keeps.
create or replace function broker.due(p_topic_id int, p_since timestamptz)
returns table (subscription_id int, due_at timestamptz)
language plpgsql stable
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
begin
  return query
  select s.id, d.available_at
    from broker.subscription s
    cross join lateral (
      select q.available_at from broker.queue q
       where q.topic_id = p_topic_id and q.subscription_id = s.id and q.priority = 0
         and q.lease_expires_at is null and q.lane_seq is null
         and q.available_at >= p_since and q.available_at <= v_now
       order by q.available_at, q.id limit 1
    ) d
   where s.topic_id = p_topic_id and s.state = 'active';
end $$;

-- The topics that have leases past their deadline, since a mark.
create or replace function broker.overdue_topics(p_since timestamptz) returns setof int
language plpgsql stable
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  return query
  select t.id from broker.topic t
    cross join lateral (
      select from broker.queue q
       where q.topic_id = t.id and q.lease_expires_at is not null
         and q.lease_expires_at >= p_since and q.lease_expires_at <= v_now
       order by q.lease_expires_at limit 1
    ) d;
end $$;
