-- When an event is due and which retention class it goes into: asked twice by a publish, so said once.

create or replace function broker.event_delay(p_now timestamptz, p_delay_ms bigint, p_available_at timestamptz) returns interval
language sql immutable parallel safe as $$
  select case
    when p_delay_ms is not null then p_delay_ms * interval '1 millisecond'
    when p_available_at > p_now then p_available_at - p_now
    else interval '0' end
$$;

create or replace function broker.event_class(p_delay interval, p_retention_seconds int, p_topic_class smallint) returns smallint
language sql immutable parallel safe as $$
  -- a delayed event has to be there still when it is due, and its retention begins then
  select case when p_delay = interval '0' then p_topic_class
    else broker.retention_class_of(extract(epoch from p_delay)::double precision + p_retention_seconds) end
$$;
