-- What a deletion left behind, and what has had its time: a chunk a call, however many subscriptions or topics have some, so
-- that no call runs into the statement timeout again and again.

-- Rows of subscriptions that were deleted. A subscription counts as purged when nothing was found of it 30 s after its
-- deletion at the earliest: a publish that began before may commit so late. Any 100 of them a call, so that those whose
-- leases last hold up no other.
create or replace function broker.purge_deleted(p_term bigint, p_limit int) returns int
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
as $$
declare
  v_subscription record;
  v_keys record;
  v_dead bigint[];
  v_purged int := 0;
  v_now timestamptz;
begin
  perform broker.assert_term(p_term);
  v_now := clock_timestamp();
  for v_subscription in
    select s.id, s.topic_id, s.deleted_at from broker.subscription s
     where s.state = 'deleted' and s.purged_at is null order by random() limit 100
  loop
    exit when v_purged >= p_limit;
    -- leased rows come back through reap, which deletes them
    select array_agg(q.publish_id) as publish_ids, array_agg(q.id) as entry_ids into v_keys
      from (
        select e.publish_id, e.id from broker.queue e
         where e.topic_id = v_subscription.topic_id and e.subscription_id = v_subscription.id
           and e.lease_expires_at is null and e.lane_seq is null
         order by e.priority, e.available_at, e.id limit p_limit for update skip locked
      ) q;
    if v_keys.entry_ids is not null then
      delete from broker.queue q
       where q.topic_id = v_subscription.topic_id and q.publish_id = any (v_keys.publish_ids)
         and q.subscription_id = v_subscription.id and q.id + 0 = any (v_keys.entry_ids);
    end if;
    v_dead := array(
      select d.id from broker.dead_letter d
       where d.topic_id = v_subscription.topic_id and d.subscription_id = v_subscription.id order by d.id limit p_limit);
    delete from broker.dead_letter d
     where d.topic_id = v_subscription.topic_id and d.subscription_id = v_subscription.id and d.id = any (v_dead);
    v_purged := v_purged + coalesce(cardinality(v_keys.entry_ids), 0) + cardinality(v_dead);

    if v_keys.entry_ids is null and v_dead = '{}' and v_subscription.deleted_at < v_now - interval '30 seconds' and not exists (
      select from broker.queue q
       where q.topic_id = v_subscription.topic_id and q.lease_expires_at is not null and q.subscription_id = v_subscription.id
    ) then
      update broker.subscription s set purged_at = v_now where s.id = v_subscription.id;
    end if;
  end loop;
  return v_purged;
end $$;

create or replace function broker.purge_idempotency_keys(p_term bigint, p_limit int) returns int
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
as $$
declare
  v_topic_id int;
  v_now timestamptz;
  v_keys bytea[];
  v_purged int := 0;
begin
  perform broker.assert_term(p_term);
  v_now := clock_timestamp();
  for v_topic_id in select t.id from broker.topic t loop
    exit when v_purged >= p_limit;
    v_keys := array(
      select k.key from broker.idempotency_key k
       where k.topic_id = v_topic_id and k.expires_at <= v_now
       order by k.expires_at limit p_limit for update skip locked);
    continue when v_keys = '{}';
    delete from broker.idempotency_key k where k.topic_id = v_topic_id and k.key = any (v_keys) and k.expires_at <= v_now;
    v_purged := v_purged + cardinality(v_keys);
  end loop;
  return v_purged;
end $$;
