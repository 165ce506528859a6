-- Ids sort by time: 41 bits of milliseconds since 2025-01-01 UTC (until 2094), 12 of a sequence, 10 of the event's ordinal.
-- So a time range is an id range, and an event's id names its publish.

create or replace function broker.id_floor(p_at timestamptz) returns bigint
language sql immutable parallel safe as $$
  -- the smallest publish_id of that moment; an event id is this << 10
  select greatest(0, floor(extract(epoch from p_at) * 1000)::bigint - 1735689600000) << 12
$$;

create or replace function broker.id_time(p_publish_id bigint) returns timestamptz
language sql immutable parallel safe as $$
  select to_timestamp(((p_publish_id >> 12) + 1735689600000) / 1000.0)
$$;

create or replace function broker.retention_class_of(p_seconds double precision) returns smallint
language sql immutable parallel safe as $$
  -- in hours; the last one takes everything longer, and no event is kept longer than a year
  select (case
    when p_seconds <= 3600 then 1
    when p_seconds <= 86400 then 24
    when p_seconds <= 604800 then 168
    when p_seconds <= 2592000 then 720
    when p_seconds <= 7776000 then 2160
    else 8760 end)::smallint
$$;

create or replace function broker.event_attributes(
  p_type text, p_ce_id text, p_source text, p_subject text, p_time text, p_datacontenttype text,
  p_dataschema text, p_ordering_key text, p_extensions json
) returns jsonb
language sql immutable parallel safe as $$
  -- what an `exact` filter is compared with: every attribute as text, by the names that receivers see
  select jsonb_strip_nulls(jsonb_build_object(
    'type', p_type, 'id', p_ce_id, 'source', p_source, 'subject', p_subject, 'time', p_time,
    'datacontenttype', p_datacontenttype, 'dataschema', p_dataschema, 'partitionkey', p_ordering_key))
    || coalesce((select jsonb_object_agg(x.key, x.value) from json_each_text(p_extensions) x), '{}'::jsonb)
$$;
