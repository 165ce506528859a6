-- Sums up the queue per subscription. It reads the whole queue, so it is done by one process at a time, and not again
-- before ten times its own duration has passed: it never takes more than a tenth of one core.
-- The leader calls it each second; an API replica that finds the sample older than 5 s calls it too, so that back-pressure
-- is real also while nobody leads. Returns whether this call sampled.
create or replace function broker.sample_backlog() returns boolean
language plpgsql as $$
declare
  v_began timestamptz := clock_timestamp();
  v_last record;
begin
  if not pg_try_advisory_xact_lock(hashtext('broker.sample_backlog')) then
    return false;
  end if;
  select s.sampled_at, s.duration_ms into v_last from broker.backlog_sampling s;
  -- one that lies ahead was taken before the clock was set back
  if v_began >= v_last.sampled_at and v_began < v_last.sampled_at + greatest(500, v_last.duration_ms * 10) * interval '1 millisecond' then
    return false;
  end if;

  insert into broker.backlog_sample as b (topic_id, subscription_id, waiting_events, leased_events, dead_letters, oldest_waiting_at, sampled_at)
  select s.topic_id, s.id, coalesce(q.waiting, 0), coalesce(q.leased, 0), 0, q.oldest, v_began
    from broker.subscription s
    left join (
      select topic_id, subscription_id,
          sum(event_count) filter (where lease_expires_at is null) as waiting,
          sum(event_count) filter (where lease_expires_at is not null) as leased,
          -- of what is due: a delayed event is not late
          min(available_at) filter (where lease_expires_at is null and available_at <= v_began) as oldest
        from broker.queue group by topic_id, subscription_id
    ) q on q.topic_id = s.topic_id and q.subscription_id = s.id
   where s.state <> 'deleted'
  on conflict (topic_id, subscription_id) do update
    set waiting_events = excluded.waiting_events, leased_events = excluded.leased_events,
        oldest_waiting_at = excluded.oldest_waiting_at, sampled_at = excluded.sampled_at;
  delete from broker.backlog_sample b where b.sampled_at <> v_began;

  update broker.backlog_sampling s
     set sampled_at = v_began, duration_ms = (extract(epoch from clock_timestamp() - v_began) * 1000)::int;
  return true;
end $$;

-- Counts the dead letters of each subscription into the sample. Apart from it, because nothing bounds them: a count that
-- outruns the statement timeout leaves a gauge behind, and not back-pressure. Counted first and written then, so that no
-- sample waits for the count.
create or replace function broker.count_dead_letters() returns void
language plpgsql as $$
declare
  v_subscription_ids int[];
  v_counts bigint[];
begin
  select array_agg(d.subscription_id), array_agg(d.dead) into v_subscription_ids, v_counts
    from (select subscription_id, count(*) as dead from broker.dead_letter group by subscription_id) d;
  update broker.backlog_sample b
     set dead_letters = coalesce(v_counts[array_position(v_subscription_ids, b.subscription_id)], 0)
   where b.dead_letters <> coalesce(v_counts[array_position(v_subscription_ids, b.subscription_id)], 0);
end $$;
