-- Publishes dead letters again, to their own subscription alone: new events with new ids that remember their origin, whose
-- id is what receivers see; attempts begin at 0. At most p_limit of a job a call; returns how many, and whether the job is done.
-- A job with a rate has earned one event when it begins, and `rate` more each second; `started_at` is from when on they are
-- counted. 0 events and not done: it has earned nothing yet. What nobody was there to redrive is made up for at most a second:
-- after an hour without a leader, a receiver that was to be spared would get an hour's events at once.
create or replace function broker.redrive(p_topic_id int, p_term bigint, p_job_id bigint, p_limit int)
returns table (redriven int, finished boolean, woken int)
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_job record;
  v_topic record;
  v_now timestamptz;
  v_publish_id bigint;
  v_letters bigint[];
  v_limit int := least(p_limit, 100);
  v_started_at timestamptz;
  v_count int;
  v_finished boolean;
begin
  perform broker.assert_term(p_term);
  select j.subscription_id, j.last_dead_letter_id, j.rate_per_second, j.started_at, j.done into v_job
    from broker.job j where j.id = p_job_id and j.topic_id = p_topic_id and j.state in ('waiting', 'running') for update;
  if not found then
    return query select 0, true, null::int;
    return;
  end if;
  v_now := clock_timestamp();
  v_started_at := coalesce(v_job.started_at, v_now);
  if v_job.rate_per_second is not null then
    -- the upper bound matters only where the clock was set back
    v_started_at := least(
      greatest(v_started_at, v_now - (1 + v_job.done::float8 / v_job.rate_per_second) * interval '1 second'),
      v_now - (greatest(v_job.done - 1, 0)::float8 / v_job.rate_per_second) * interval '1 second');
    v_limit := least(v_limit, 1 - v_job.done + floor(extract(epoch from v_now - v_started_at) * v_job.rate_per_second));
    if v_limit < 1 then
      if v_started_at <> v_job.started_at then
        update broker.job j set started_at = v_started_at where j.id = p_job_id;
      end if;
      return query select 0, false, null::int;
      return;
    end if;
  end if;
  select t.retention_class, t.retention_seconds into v_topic from broker.topic t where t.id = p_topic_id;
  -- <= 100: one entry
  v_letters := array(
    select d.id from (
      select d.id from broker.dead_letter d
       where d.topic_id = p_topic_id and d.subscription_id = v_job.subscription_id and d.id <= v_job.last_dead_letter_id
       order by d.id limit v_limit for update
    ) d);
  v_count := cardinality(v_letters);
  -- again: the dead letters may have been waited for
  v_now := clock_timestamp();
  v_publish_id := broker.id_floor(v_now) | (nextval('broker.publish_seq') & 4095);

  if v_count > 0 then
    insert into broker.event (id, published_at, expires_at, origin_id, topic_id, retention_class, type, ce_id, source, subject,
      "time", datacontenttype, dataschema, ordering_key, extensions, traceparent, tracestate, data, data_binary)
    select (v_publish_id << 10) + u.ordinality - 1, v_now, v_now + v_topic.retention_seconds * interval '1 second',
        coalesce(d.origin_id, d.event_id), p_topic_id, v_topic.retention_class, d.type, d.ce_id, d.source, d.subject, d."time",
        d.datacontenttype, d.dataschema, d.ordering_key, d.extensions, d.traceparent, d.tracestate, d.data, d.data_binary
      from unnest(v_letters) with ordinality u(id, ordinality)
      cross join lateral (
        select l.* from broker.dead_letter l
         where l.topic_id = p_topic_id and l.subscription_id = v_job.subscription_id and l.id = u.id
        offset 0
      ) d;

    insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at, retention_class)
    select p_topic_id, v_publish_id, v_job.subscription_id, array_agg(x.ordinal order by x.ordinal), count(*)::int,
        sum(x.bytes)::int, v_now, v_topic.retention_class
      from (
        select y.ordinal, y.bytes, (sum(y.bytes) over (order by y.ordinal) - y.bytes) / 786432 as by_bytes
          from (
            select (u.ordinality - 1)::smallint as ordinal, d.bytes
              from unnest(v_letters) with ordinality u(id, ordinality)
              cross join lateral (
                -- what a publish counts is the whole text of the event
                select 100 + octet_length(concat(l.type, l.ce_id, l.source, l.subject, l."time", l.datacontenttype, l.dataschema,
                    l.ordering_key, l.traceparent, l.tracestate, l.extensions, l.data))
                    + coalesce(octet_length(l.data_binary), 0) as bytes
                  from broker.dead_letter l
                 where l.topic_id = p_topic_id and l.subscription_id = v_job.subscription_id and l.id = u.id
                offset 0
              ) d
          ) y
      ) x
     group by x.by_bytes;

    delete from broker.dead_letter d
     where d.topic_id = p_topic_id and d.subscription_id = v_job.subscription_id and d.id = any (v_letters);
  end if;

  v_finished := v_count < v_limit or not exists (
    select from broker.dead_letter d
     where d.topic_id = p_topic_id and d.subscription_id = v_job.subscription_id and d.id <= v_job.last_dead_letter_id);
  update broker.job j
     set done = j.done + v_count, started_at = v_started_at, updated_at = v_now,
         state = case when v_finished then 'succeeded' else 'running' end::broker.job_state,
         finished_at = case when v_finished then v_now end
   where j.id = p_job_id;
  return query select v_count, v_finished, case when v_count > 0 then v_job.subscription_id end;
end $$;

-- Asks for the dead letters that a subscription has now to be put back to its queue, and returns the job; or the one that is
-- under way already. No row where there is no such subscription. Its row is locked, so that two calls at once make one job.
create or replace function broker.begin_redrive(p_topic_id int, p_subscription_id int, p_rate_per_second int)
returns table (job_id bigint, created boolean)
language plpgsql as $$
declare
  v_job_id bigint;
begin
  if p_rate_per_second not between 1 and 100000 then
    raise exception 'a rate is 1 to 100000 events a second, not %', p_rate_per_second using errcode = 'invalid_parameter_value';
  end if;
  perform from broker.subscription s
    where s.id = p_subscription_id and s.topic_id = p_topic_id and s.state <> 'deleted' for no key update;
  if not found then
    return;
  end if;
  select j.id into v_job_id from broker.job j
   where j.topic_id = p_topic_id and j.subscription_id = p_subscription_id and j.state in ('waiting', 'running') limit 1;
  if found then
    return query select v_job_id, false;
    return;
  end if;
  return query
  insert into broker.job as j (type, state, topic_id, subscription_id, last_dead_letter_id, total, rate_per_second, finished_at)
  select 'redrive', case when count(*) = 0 then 'succeeded' else 'waiting' end::broker.job_state, p_topic_id, p_subscription_id,
      max(d.id), count(*)::int, p_rate_per_second, case when count(*) = 0 then clock_timestamp() end
    from broker.dead_letter d
   where d.topic_id = p_topic_id and d.subscription_id = p_subscription_id
  returning j.id, true;
end $$;

-- The same for operators, by name.
create or replace function broker.redrive(p_subscription text, p_rate_per_second int default null) returns bigint
language plpgsql as $$
declare
  v_subscription record;
  v_job record;
begin
  v_subscription := broker.lock_subscription(p_subscription);
  select b.job_id, b.created into v_job
    from broker.begin_redrive(v_subscription.topic_id, v_subscription.id, p_rate_per_second) b;
  if not v_job.created then
    raise exception 'job % is redriving % already', v_job.job_id, p_subscription
      using errcode = 'BR004', hint = format('select state, done, total from broker.job where id = %s shows how far it is.', v_job.job_id);
  end if;
  return v_job.job_id;
end $$;
comment on function broker.redrive(text, int) is
  'Puts the dead letters that a subscription has now back to its queue, at most so many a second where a rate is given. Returns the id of the job, which the leading reaper does; broker.job shows how far it is.';
