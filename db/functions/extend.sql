-- Prolongs leases: the deadline of the whole row becomes the later of the old and the new one. To shorten is to nack.
-- Locks in key order like settle, so that the two cannot deadlock, and looks in a statement of its own.
-- Returns a row per element: the deadline, or null where the lease is not (or for this event no longer) this one.
create or replace function broker.extend(
  p_topic_id int,
  p_subscription_id int,
  p_publish_ids bigint[],
  p_entry_ids bigint[],
  p_generations int[],
  p_ordinals smallint[],
  p_lease_ms bigint
) returns table (element int, lease_expires_at timestamptz)
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  v_deadline timestamptz;
  v_publish_ids bigint[];
  v_entry_ids bigint[];
begin
  if exists (
    select from broker.subscription s
     where s.id = p_subscription_id and s.topic_id = p_topic_id and s.state <> 'deleted'
  ) then
    perform from (
        select distinct u.publish_id, u.entry_id, u.generation
          from unnest(p_publish_ids, p_entry_ids, p_generations) u(publish_id, entry_id, generation)
         order by 1, 2, 3
      ) k
      cross join lateral (
        select from broker.queue q
         where q.topic_id = p_topic_id and q.publish_id = k.publish_id and q.subscription_id = p_subscription_id
           and q.id = k.entry_id and q.generation = k.generation
           for update
      ) locked;
    v_deadline := clock_timestamp() + p_lease_ms * interval '1 millisecond';

    select array_agg(q.publish_id), array_agg(q.id) into v_publish_ids, v_entry_ids
      from unnest(p_publish_ids, p_entry_ids, p_generations, p_ordinals) u(publish_id, entry_id, generation, ordinal)
      cross join lateral (
        select q.publish_id, q.id from broker.queue q
         where q.topic_id = p_topic_id and q.publish_id = u.publish_id and q.subscription_id = p_subscription_id
           and q.id = u.entry_id and q.generation = u.generation and u.ordinal = any (q.ordinals)
        offset 0
      ) q;
    if v_entry_ids is not null then
      update broker.queue q set lease_expires_at = greatest(q.lease_expires_at, v_deadline)
       where q.topic_id = p_topic_id and q.publish_id = any (v_publish_ids)
         and q.subscription_id = p_subscription_id and q.id + 0 = any (v_entry_ids);
    end if;
  end if;

  return query
  select u.ordinality::int, q.lease_expires_at
    from unnest(p_publish_ids, p_entry_ids, p_generations, p_ordinals)
      with ordinality u(publish_id, entry_id, generation, ordinal, ordinality)
    left join lateral (
      select q.lease_expires_at from broker.queue q
       where v_entry_ids is not null
         and q.topic_id = p_topic_id and q.publish_id = u.publish_id and q.subscription_id = p_subscription_id
         and q.id = u.entry_id and q.generation = u.generation and u.ordinal = any (q.ordinals)
      offset 0
    ) q on true;
end $$;
