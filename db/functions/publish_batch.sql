-- Everything that one replica has put together for one topic, in one call: idempotency, events, and the queue entries
-- of every matching subscription. Element i of the arrays is event i; arrays that hold only nulls may be null.
--
-- Why this shape
--  * Fan-out happens here, so that no replica can miss a subscription that exists when the statement begins.
--  * Plain INSERT ... SELECT FROM unnest: on Citus an INSERT in a CTE is refused or becomes a two-phase commit.
--  * Keys are taken with DO UPDATE, which locks a row even where its WHERE says no (DO NOTHING would neither lock nor see
--    a row that another transaction has just committed), sorted, request keys before event keys: no deadlock.
--    `publish_id` and `created_at` are of a clock read before those locks; what becomes due is read after them.
--  * An entry is cut after 100 events, or after the event that passes 768 KiB, so that it stays within 1 MiB.
--    Subscriptions with the same filter share the cut, and all filters the attributes of an event. Both are `materialized`,
--    because the planner would do them again for each subscription and for each filter.
--
-- Returns one row: status ('published' or 'topic_not_found'), per event an id and, where keys were given or an event was
-- refused, an outcome: published | duplicate | conflict | request_duplicate | request_conflict | too_far; and the
-- subscriptions that have something to claim now.
create or replace function broker.publish_batch(
  p_topic_id int,
  p_requests int[],
  p_types text[],
  p_data json[],
  p_bytes int[],
  p_ce_ids text[],
  p_sources text[],
  p_subjects text[],
  p_times text[],
  p_datacontenttypes text[],
  p_dataschemas text[],
  p_ordering_keys text[],
  p_extensions json[],
  p_traceparents text[],
  p_tracestates text[],
  p_delays_ms bigint[],
  p_available_ats timestamptz[],
  p_event_keys bytea[],
  p_event_fingerprints bytea[],
  p_request_keys bytea[],
  p_request_fingerprints bytea[]
) returns table (status text, ids bigint[], outcomes text[], woken int[])
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_count int := cardinality(p_types);
  v_topic record;
  v_now timestamptz := clock_timestamp();
  v_publish_id bigint := broker.id_floor(v_now) | (nextval('broker.publish_seq') & 4095);
  v_ids bigint[];
  v_outcomes text[];
  v_kept boolean[];
  v_entries broker.new_entry[];
begin
  if v_count > 1000 then
    raise exception 'more than 1000 events in one call' using errcode = 'invalid_parameter_value',
      detail = 'Ordinals past 1023 would run into the ids of the next publish.';
  end if;
  select t.retention_seconds, t.retention_class, t.deduplication_seconds * interval '1 second' as deduplication
    into v_topic from broker.topic t where t.id = p_topic_id and t.state = 'active';
  if not found then
    return query select 'topic_not_found', null::bigint[], null::text[], null::int[];
    return;
  end if;

  v_ids := array(select (v_publish_id << 10) + i - 1 from generate_series(1, v_count) i);

  if p_available_ats is not null then
    select array_agg(case when w.far then 'too_far' end order by w.ordinality) into v_outcomes
      from (
        select u.ordinality,
            bool_or(coalesce(u.available_at > v_now + interval '30 days', false)) over (partition by u.request) as far
          from unnest(p_requests, p_available_ats) with ordinality u(request, available_at, ordinality)
      ) w;
  end if;

  -- a window of 0 remembers nothing, also not inside this call
  if (p_request_keys is not null or p_event_keys is not null) and v_topic.deduplication > interval '0' then
    select r.ids, r.outcomes into v_ids, v_outcomes
      from broker.claim_idempotency_keys(p_topic_id, v_publish_id, v_now, v_topic.deduplication, v_ids, v_outcomes,
        p_requests, p_event_keys, p_event_fingerprints, p_request_keys, p_request_fingerprints) r;
    -- a key may have been waited for: nothing becomes due in the past
    v_now := clock_timestamp();
  end if;

  if v_outcomes is not null then
    v_kept := array(select coalesce(o, 'published') = 'published' from unnest(v_outcomes) o);
    v_outcomes := array(select coalesce(o, 'published') from unnest(v_outcomes) o);
    if not (true = any (v_kept)) then
      return query select 'published', v_ids, v_outcomes, null::int[];
      return;
    end if;
  end if;

  insert into broker.event (
    id, published_at, expires_at, topic_id, retention_class, type, ce_id, source, subject, "time",
    datacontenttype, dataschema, ordering_key, extensions, traceparent, tracestate, data)
  select (v_publish_id << 10) + e.ordinality - 1, v_now,
      -- retention is counted from when the event is due
      v_now + least(interval '1 year', due.delay + v_topic.retention_seconds * interval '1 second'),
      p_topic_id, broker.event_class(due.delay, v_topic.retention_seconds, v_topic.retention_class),
      e.type, e.ce_id, e.source, e.subject, e."time", e.datacontenttype, e.dataschema, e.ordering_key,
      e.extensions, e.traceparent, e.tracestate, e.data
    from unnest(p_types, p_data, p_ce_ids, p_sources, p_subjects, p_times, p_datacontenttypes, p_dataschemas,
        p_ordering_keys, p_extensions, p_traceparents, p_tracestates, p_delays_ms, p_available_ats, v_kept)
      with ordinality e(type, data, ce_id, source, subject, "time", datacontenttype, dataschema, ordering_key,
        extensions, traceparent, tracestate, delay_ms, available_at, kept, ordinality)
    cross join lateral (select broker.event_delay(v_now, e.delay_ms, e.available_at) as delay) due
   where e.type is not null and e.kept is not false;

  with subject as materialized (
    select (u.ordinality - 1)::smallint as ordinal, u.type, u.bytes, v_now + d.delay as available_at,
        broker.event_class(d.delay, v_topic.retention_seconds, v_topic.retention_class) as retention_class,
        -- asked here and not before, so that a filter that is being changed is seen as it was or as it will be
        case when exists (
          select from broker.subscription s
           where s.topic_id = p_topic_id and s.state <> 'deleted' and s.filter_attributes is not null
        ) then broker.event_attributes(u.type, u.ce_id, u.source, u.subject, u."time",
          u.datacontenttype, u.dataschema, u.ordering_key, u.extensions) end as attributes
      from unnest(p_types, p_bytes, p_delays_ms, p_available_ats, v_kept, p_ce_ids, p_sources, p_subjects,
          p_times, p_datacontenttypes, p_dataschemas, p_ordering_keys, p_extensions)
        with ordinality u(type, bytes, delay_ms, available_at, kept, ce_id, source, subject,
          "time", datacontenttype, dataschema, ordering_key, extensions, ordinality)
      cross join lateral (select broker.event_delay(v_now, u.delay_ms, u.available_at) as delay) d
     where u.type is not null and u.kept is not false
  ), cut as materialized (
    select f.subscription_ids, c.*
      from (
        select s.filter_type, s.filter_attributes, array_agg(s.id) as subscription_ids
          from broker.subscription s where s.topic_id = p_topic_id and s.state <> 'deleted'
         group by s.filter_type, s.filter_attributes
      ) f
      cross join lateral (
        select m.retention_class, m.available_at, array_agg(m.ordinal order by m.ordinal) as ordinals, sum(m.bytes)::int as bytes
          from (
            select e.ordinal, e.bytes, e.retention_class, e.available_at,
                (row_number() over due - 1) / 100 as by_count,
                (sum(e.bytes) over due - e.bytes) / 786432 as by_bytes
              from subject e
             where (f.filter_type is null or e.type = f.filter_type)
               and case when f.filter_attributes is null then true else e.attributes @> f.filter_attributes end
            window due as (partition by e.retention_class, e.available_at order by e.ordinal)
          ) m
         group by m.retention_class, m.available_at, m.by_count, m.by_bytes
      ) c
  )
  select array_agg(row(s.id, c.retention_class, c.available_at, c.ordinals, c.bytes)::broker.new_entry) into v_entries
    from cut c cross join lateral unnest(c.subscription_ids) s(id);

  if v_entries is not null then
    insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at, retention_class)
    select p_topic_id, v_publish_id, n.subscription_id, n.ordinals, cardinality(n.ordinals), n.bytes, n.available_at, n.retention_class
      from unnest(v_entries) n;
  end if;

  return query select 'published', v_ids, v_outcomes,
    array(select distinct n.subscription_id from unnest(v_entries) n where n.available_at <= v_now);
end $$;
