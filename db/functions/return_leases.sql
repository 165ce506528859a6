-- Part of reap and take_over: what becomes of leases that ended without an answer. They wait again at once; as single isolated
-- events from the second time on, or when the next attempt is the last; as dead letters when the attempts are used up.
-- The rows are locked by the caller; they are found again by their full keys.
-- Dropped first, because the release before returned fewer columns; in the transaction of all definitions, so that no call finds it gone.
drop function if exists broker.return_leases(int, timestamptz, broker.expired_lease[], text);
create or replace function broker.return_leases(
  p_topic_id int, p_now timestamptz, p_leases broker.expired_lease[], p_error text
) returns table (expired_events int, dead_events int, woken int[], dead_subscription_ids int[], dead_counts int[])
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_publish_ids bigint[];
  v_subscription_ids int[];
  v_entry_ids bigint[];
  v_isolate_ids bigint[];
  v_dying broker.dying_event[];
begin
  if p_leases is null then
    return query select 0, 0, '{}'::int[], '{}'::int[], '{}'::int[];
    return;
  end if;

  insert into broker.attempt (topic_id, subscription_id, publish_id, entry_id, generation, attempt, retention_class,
    first_ordinal, ordinals, outcome, settled_at, worker, error)
  select p_topic_id, l.subscription_id, l.publish_id, l.entry_id, l.generation, l.attempt, l.retention_class,
      l.ordinals[1], l.ordinals,
      case l.fate when 'dead' then 'dead' else 'lease_expired' end::broker.attempt_outcome, p_now, l.leased_by, p_error
    from unnest(p_leases) l where l.fate <> 'deleted';

  v_dying := array(
    select row(l.subscription_id, l.retention_class, (l.publish_id << 10) + o, l.attempt, 'max_attempts', p_error, null)::broker.dying_event
      from unnest(p_leases) l, unnest(l.ordinals) o where l.fate = 'dead');
  if v_dying <> '{}' then
    perform broker.bury(p_topic_id, p_now, v_dying);
  end if;

  insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at,
    generation, attempt, deferrals, isolated, retention_class)
  select p_topic_id, l.publish_id, l.subscription_id, array[o], 1, greatest(1, l.bytes / cardinality(l.ordinals)), p_now,
      l.generation + 1, l.attempt, l.deferrals, true, l.retention_class
    from unnest(p_leases) l, unnest(l.ordinals) o where l.fate = 'singles';

  select array_agg(l.publish_id), array_agg(l.subscription_id), array_agg(l.entry_id)
      into v_publish_ids, v_subscription_ids, v_entry_ids
    from unnest(p_leases) l where l.fate in ('deleted', 'dead', 'singles');
  if v_entry_ids is not null then
    delete from broker.queue q
     where q.topic_id = p_topic_id and q.publish_id = any (v_publish_ids)
       and q.subscription_id = any (v_subscription_ids) and q.id + 0 = any (v_entry_ids);
  end if;

  select array_agg(l.publish_id), array_agg(l.subscription_id), array_agg(l.entry_id),
      coalesce(array_agg(l.entry_id) filter (where l.fate = 'isolated'), '{}')
      into v_publish_ids, v_subscription_ids, v_entry_ids, v_isolate_ids
    from unnest(p_leases) l where l.fate in ('isolated', 'waiting');
  if v_entry_ids is not null then
    update broker.queue q
       set lease_expires_at = null, leased_by = null, generation = q.generation + 1, available_at = p_now,
           isolated = q.isolated or q.id = any (v_isolate_ids)
     where q.topic_id = p_topic_id and q.publish_id = any (v_publish_ids)
       and q.subscription_id = any (v_subscription_ids) and q.id + 0 = any (v_entry_ids);
  end if;

  return query
  select coalesce(sum(cardinality(l.ordinals)) filter (where l.fate <> 'deleted'), 0)::int,
      coalesce(sum(cardinality(l.ordinals)) filter (where l.fate = 'dead'), 0)::int,
      coalesce(array_agg(distinct l.subscription_id) filter (where l.fate in ('singles', 'isolated', 'waiting')), '{}'),
      d.subscription_ids, d.counts
    from unnest(p_leases) l
    cross join (
      select coalesce(array_agg(c.subscription_id), '{}') as subscription_ids, coalesce(array_agg(c.events), '{}') as counts
        from (
          select x.subscription_id, sum(cardinality(x.ordinals))::int as events
            from unnest(p_leases) x where x.fate = 'dead' group by x.subscription_id
        ) c
    ) d
   group by d.subscription_ids, d.counts;
end $$;

-- What becomes of one of them: deleted | dead | singles | isolated | waiting.
create or replace function broker.fate_of(
  p_state broker.subscription_state, p_max_attempts int, p_generation int, p_attempt int, p_event_count int
) returns text
language sql immutable parallel safe as $$
  select case
    when p_state = 'deleted' then 'deleted'
    when p_attempt >= p_max_attempts then 'dead'
    when p_generation = 1 and p_attempt + 1 < p_max_attempts then 'waiting'
    when p_event_count > 1 then 'singles'
    else 'isolated' end
$$;
