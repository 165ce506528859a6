-- Takes back the leases of one topic that ran out: waiting again at once; as single isolated events from the second time
-- without an answer, or when the next attempt is the last; as dead letters when the attempts are used up.
-- SKIP LOCKED: whoever is settling right now holds the row, and a settle that comes before the reap is accepted.
-- Starts at a mark on lease_expires_at, for the same reason as claim does.
-- Returns the events taken back, those that died, the subscriptions with something to claim, whether more is overdue,
-- and the next mark.
create or replace function broker.reap(
  p_topic_id int, p_term bigint, p_limit int, p_mark timestamptz
) returns table (expired_events int, dead_events int, woken int[], more boolean, mark timestamptz)
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_leases broker.expired_lease[];
  v_publish_ids bigint[];
  v_subscription_ids int[];
  v_entry_ids bigint[];
  v_isolate_ids bigint[];
  v_dying broker.dying_event[];
begin
  perform broker.assert_term(p_term);
  v_now := clock_timestamp();

  select array_agg(row(q.publish_id, q.subscription_id, q.id, q.generation, q.retention_class, q.attempt, q.deferrals, q.bytes,
        q.ordinals, q.lease_expires_at, q.leased_by,
        case
          when s.state = 'deleted' then 'deleted'
          when q.attempt >= s.max_attempts then 'dead'
          when (q.generation > 1 or q.attempt + 1 >= s.max_attempts) and q.event_count > 1 then 'singles'
          when q.generation > 1 or q.attempt + 1 >= s.max_attempts then 'isolated'
          else 'waiting' end)::broker.expired_lease)
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
  if v_leases is null then
    return query select 0, 0, '{}'::int[], false, null::timestamptz;
    return;
  end if;

  insert into broker.attempt (topic_id, subscription_id, publish_id, entry_id, generation, attempt, retention_class,
    first_ordinal, ordinals, outcome, settled_at, worker, error)
  select p_topic_id, l.subscription_id, l.publish_id, l.entry_id, l.generation, l.attempt, l.retention_class,
      l.ordinals[1], l.ordinals,
      case l.fate when 'dead' then 'dead' else 'lease_expired' end::broker.attempt_outcome, v_now, l.leased_by, 'lease expired'
    from unnest(v_leases) l where l.fate <> 'deleted';

  v_dying := array(
    select row(l.subscription_id, l.retention_class, (l.publish_id << 10) + o, l.attempt, 'max_attempts', 'lease expired')::broker.dying_event
      from unnest(v_leases) l, unnest(l.ordinals) o where l.fate = 'dead');
  if v_dying <> '{}' then
    perform broker.bury(p_topic_id, v_now, v_dying);
  end if;

  insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at,
    generation, attempt, deferrals, isolated, retention_class)
  select p_topic_id, l.publish_id, l.subscription_id, array[o], 1, greatest(1, l.bytes / cardinality(l.ordinals)), v_now,
      l.generation + 1, l.attempt, l.deferrals, true, l.retention_class
    from unnest(v_leases) l, unnest(l.ordinals) o where l.fate = 'singles';

  select array_agg(l.publish_id), array_agg(l.subscription_id), array_agg(l.entry_id)
      into v_publish_ids, v_subscription_ids, v_entry_ids
    from unnest(v_leases) l where l.fate in ('deleted', 'dead', 'singles');
  if v_entry_ids is not null then
    delete from broker.queue q
     where q.topic_id = p_topic_id and q.publish_id = any (v_publish_ids)
       and q.subscription_id = any (v_subscription_ids) and q.id + 0 = any (v_entry_ids);
  end if;

  select array_agg(l.publish_id), array_agg(l.subscription_id), array_agg(l.entry_id),
      coalesce(array_agg(l.entry_id) filter (where l.fate = 'isolated'), '{}')
      into v_publish_ids, v_subscription_ids, v_entry_ids, v_isolate_ids
    from unnest(v_leases) l where l.fate in ('isolated', 'waiting');
  if v_entry_ids is not null then
    update broker.queue q
       set lease_expires_at = null, leased_by = null, generation = q.generation + 1, available_at = v_now,
           isolated = q.isolated or q.id = any (v_isolate_ids)
     where q.topic_id = p_topic_id and q.publish_id = any (v_publish_ids)
       and q.subscription_id = any (v_subscription_ids) and q.id + 0 = any (v_entry_ids);
  end if;

  return query
  select coalesce(sum(cardinality(l.ordinals)) filter (where l.fate <> 'deleted'), 0)::int,
      coalesce(sum(cardinality(l.ordinals)) filter (where l.fate = 'dead'), 0)::int,
      coalesce(array_agg(distinct l.subscription_id) filter (where l.fate in ('singles', 'isolated', 'waiting')), '{}'),
      count(*) = p_limit, max(l.lease_expires_at)
    from unnest(v_leases) l;
end $$;
