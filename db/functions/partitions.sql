-- Partitions of `event` and `attempt`: one pair per retention class and span of time.

-- How much time one partition of a class covers: at most 20 of them stand at once.
create or replace function broker.partition_span_ms(p_class smallint) returns bigint
language sql immutable parallel safe as $$
  select (case p_class when 1 then 10 when 24 then 180 when 168 then 720 when 720 then 2880 when 2160 then 8640 else 28800 end)
    * 60000::bigint
$$;

-- Makes the partition of now and of the next two spans, for one class or for all that active topics use. Repeatable.
-- A table is made by itself, with a CHECK that says its bounds, and then attached: CREATE ... PARTITION OF would take an
-- ACCESS EXCLUSIVE lock on the parent, wait behind any reader of `event`, and publishers would wait behind that.
-- With the rights of its owner, as the only function: who attaches a partition must own the parent, and the API, which owns
-- nothing, calls this for a new topic or a publish that finds no partition. So it makes nothing but what the classes need.
create or replace function broker.ensure_partitions(p_class smallint default null) returns int
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
set timezone = 'UTC'
as $$
declare
  v_now_ms bigint;
  v_class smallint;
  v_span bigint;
  v_start timestamptz;
  v_name text;
  v_low bigint;
  v_high bigint;
  v_made int := 0;
begin
  if p_class not in (1, 24, 168, 720, 2160, 8760) then
    raise exception 'there is no retention class of % hours', p_class using errcode = 'invalid_parameter_value';
  end if;
  perform pg_advisory_xact_lock(hashtext('broker.ensure_partitions'));
  v_now_ms := extract(epoch from clock_timestamp()) * 1000;
  for v_class in
    select distinct c.class from (
      select t.retention_class as class from broker.topic t where t.state = 'active' and p_class is null
      union all select p_class where p_class is not null
    ) c
  loop
    v_span := broker.partition_span_ms(v_class);
    for i in 0 .. 2 loop
      v_start := to_timestamp((v_now_ms / v_span + i) * v_span / 1000.0);
      v_name := format('%sh_%s', v_class, to_char(v_start, 'YYYYMMDD"t"HH24MI'));
      continue when broker.is_attached('event_' || v_name) and broker.is_attached('attempt_' || v_name);
      v_low := broker.id_floor(v_start);
      v_high := broker.id_floor(v_start + v_span * interval '1 millisecond');
      perform broker.add_partition('event', v_name, 'id', v_class, v_low << 10, v_high << 10);
      perform broker.add_partition('attempt', v_name, 'publish_id', v_class, v_low, v_high);
      v_made := v_made + 1;
    end loop;
  end loop;
  return v_made;
end $$;

create or replace function broker.is_attached(p_name text) returns boolean
language sql stable as $$
  select exists (select from pg_inherits i where i.inhrelid = to_regclass(format('broker.%I', p_name)))
$$;

-- One that stands by itself was detached while the clock was ahead: it is attached again.
create or replace function broker.add_partition(
  p_parent text, p_name text, p_column text, p_class smallint, p_low bigint, p_high bigint
) returns void
language plpgsql as $$
begin
  if broker.is_attached(p_parent || '_' || p_name) then
    return;
  end if;
  execute format('create table if not exists broker.%I (like broker.%I including defaults including indexes including storage,
      constraint %I check (retention_class is not null and retention_class = %s and %I >= %s and %I < %s))',
    p_parent || '_' || p_name, p_parent, p_parent || '_' || p_name || '_bounds', p_class, p_column, p_low, p_column, p_high);
  execute format('alter table broker.%I attach partition broker.%I for values from (%s, %s) to (%s, %s)',
    p_parent, p_parent || '_' || p_name, p_class, p_low, p_class, p_high);
end $$;

-- Retention wins: takes out of the queue what still refers to events of one span, at most p_limit entries (and some 64 MiB) of
-- one topic a call, by the subscription's policy. Leased ones too: their settle will say lease_lost. Returns what went, per
-- subscription, and nothing when nothing is left.
-- The copies are read from the partition itself: a nack that was under way may put an entry back after the detach.
create or replace function broker.expire_entries(
  p_term bigint, p_class smallint, p_from timestamptz, p_to timestamptz, p_limit int
) returns table (topic_id int, subscription_id int, dropped int, dead int)
language plpgsql
set lock_timeout = '500ms'
set timezone = 'UTC'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  v_leases broker.expired_lease[];
  v_topic_id int;
  v_low bigint := broker.id_floor(p_from);
  v_high bigint := broker.id_floor(p_to);
  v_partition regclass := to_regclass(format('broker.event_%sh_%s', p_class, to_char(p_from, 'YYYYMMDD"t"HH24MI')));
begin
  perform broker.assert_term(p_term);
  loop
    select e.topic_id into v_topic_id from broker.queue e
     where e.publish_id >= v_low and e.publish_id < v_high and e.retention_class = p_class
     order by e.publish_id limit 1;
    if not found then
      return;
    end if;
    select array_agg(row(q.publish_id, q.subscription_id, q.id, q.generation, q.retention_class, q.attempt, q.deferrals, q.bytes,
          q.ordinals, q.lease_expires_at, q.leased_by,
          case when s.state = 'deleted' then 'deleted' when s.on_expiry = 'dead_letter' then 'dead' else 'dropped' end
        )::broker.expired_lease)
        into v_leases
      from (
        select l.*, sum(l.bytes) over (order by l.publish_id, l.subscription_id, l.id) - l.bytes as bytes_before
          from (
            select e.* from broker.queue e
             where e.topic_id = v_topic_id and e.publish_id >= v_low and e.publish_id < v_high and e.retention_class = p_class
             order by e.publish_id, e.subscription_id, e.id limit p_limit for update
          ) l
      ) q
      cross join lateral (
        select s.state, s.on_expiry from broker.subscription s where s.id = q.subscription_id offset 0
      ) s
     where q.bytes_before < 67108864;
    -- null where others have just settled what was seen
    exit when v_leases is not null;
  end loop;

  if v_partition is not null and exists (select from unnest(v_leases) l where l.fate = 'dead') then
    execute format($sql$
      insert into broker.dead_letter (event_id, origin_id, died_at, published_at, topic_id, subscription_id, attempts, reason,
        last_error, type, ce_id, source, subject, "time", datacontenttype, dataschema, ordering_key, extensions, traceparent,
        tracestate, data, data_binary)
      select e.id, e.origin_id, $3, e.published_at, $2, l.subscription_id, l.attempt, 'expired', 'retention ended',
          e.type, e.ce_id, e.source, e.subject, e."time", e.datacontenttype, e.dataschema, e.ordering_key, e.extensions,
          e.traceparent, e.tracestate, e.data, e.data_binary
        from unnest($1) l
        cross join lateral unnest(l.ordinals) o
        cross join lateral (
          select ev.* from %s ev
           where ev.topic_id = $2 and ev.retention_class = l.retention_class and ev.id = (l.publish_id << 10) + o
          offset 0
        ) e
       where l.fate = 'dead'$sql$, v_partition) using v_leases, v_topic_id, clock_timestamp();
  end if;

  delete from broker.queue q
   where q.topic_id = v_topic_id
     and q.publish_id = any (array(select l.publish_id from unnest(v_leases) l))
     and q.subscription_id = any (array(select l.subscription_id from unnest(v_leases) l))
     and q.id + 0 = any (array(select l.entry_id from unnest(v_leases) l));

  return query
  select v_topic_id, l.subscription_id,
      coalesce(sum(cardinality(l.ordinals)) filter (where l.fate = 'dropped'), 0)::int,
      coalesce(sum(cardinality(l.ordinals)) filter (where l.fate = 'dead'), 0)::int
    from unnest(v_leases) l group by l.subscription_id;
end $$;

-- Drops a detached pair, once nothing in the queue refers to it any more. Returns whether it did.
create or replace function broker.drop_partition(
  p_term bigint, p_class smallint, p_from timestamptz, p_to timestamptz, p_event_partition text, p_attempt_partition text
) returns boolean
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
  perform broker.assert_term(p_term);
  if p_event_partition !~ '^event_[0-9]+h_[0-9]{8}t[0-9]{4}$' or p_attempt_partition !~ '^attempt_[0-9]+h_[0-9]{8}t[0-9]{4}$' then
    raise exception 'not a partition: %, %', p_event_partition, p_attempt_partition using errcode = 'invalid_parameter_value';
  end if;
  if exists (
    select from broker.queue q
     where q.publish_id >= broker.id_floor(p_from) and q.publish_id < broker.id_floor(p_to) and q.retention_class = p_class
  ) then
    return false;
  end if;
  execute format('drop table if exists broker.%I', p_attempt_partition);
  execute format('drop table if exists broker.%I', p_event_partition);
  return true;
end $$;
