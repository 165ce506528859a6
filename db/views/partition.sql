-- The pairs that exist, by what their names say: event_<class>h_<start>, attempt_<class>h_<start>.
create or replace view broker.partition as
select c.relname::text as event_partition, replace(c.relname::text, 'event_', 'attempt_') as attempt_partition,
    split_part(split_part(c.relname, '_', 2), 'h', 1)::smallint as retention_class, starts_at,
    starts_at + broker.partition_span_ms(split_part(split_part(c.relname, '_', 2), 'h', 1)::smallint) * interval '1 millisecond' as ends_at,
    i.inhrelid is not null as attached, coalesce(i.inhdetachpending, false) as detach_pending
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'broker'
  left join pg_inherits i on i.inhrelid = c.oid
  cross join lateral (
    select make_timestamptz(substr(d.digits, 1, 4)::int, substr(d.digits, 5, 2)::int, substr(d.digits, 7, 2)::int,
        substr(d.digits, 10, 2)::int, substr(d.digits, 12, 2)::int, 0, 'UTC') as starts_at
      from (select split_part(c.relname, '_', 3) as digits) d
  ) t
 where c.relkind = 'r' and c.relname ~ '^event_[0-9]+h_[0-9]{8}t[0-9]{4}$';
comment on view broker.partition is 'Partitions of events and of the attempts beside them, by class of retention in hours.';
