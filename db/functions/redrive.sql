-- Publishes dead letters again, to their own subscription alone: new events with new ids that remember their origin, whose
-- id is what receivers see; attempts begin at 0. At most p_limit of a job a call; returns how many, and whether the job is done.
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
  v_count int;
begin
  perform broker.assert_term(p_term);
  select j.subscription_id, j.last_dead_letter_id into v_job
    from broker.job j where j.id = p_job_id and j.topic_id = p_topic_id and j.state in ('waiting', 'running') for update;
  if not found then
    return query select 0, true, null::int;
    return;
  end if;
  select t.retention_class, t.retention_seconds into v_topic from broker.topic t where t.id = p_topic_id;
  -- <= 100: one entry
  v_letters := array(
    select d.id from (
      select d.id from broker.dead_letter d
       where d.topic_id = p_topic_id and d.subscription_id = v_job.subscription_id and d.id <= v_job.last_dead_letter_id
       order by d.id limit least(p_limit, 100) for update
    ) d);
  v_count := cardinality(v_letters);
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

  update broker.job j
     set done = j.done + v_count, updated_at = v_now,
         state = case when v_count < least(p_limit, 100) then 'succeeded' else 'running' end::broker.job_state,
         finished_at = case when v_count < least(p_limit, 100) then v_now end
   where j.id = p_job_id;
  return query select v_count, v_count < least(p_limit, 100), case when v_count > 0 then v_job.subscription_id end;
end $$;
