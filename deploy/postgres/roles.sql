-- The roles that the broker's rights belong to (db/grants.sql), for the whole server. None of them can log in: people and
-- processes log in as members, with a password each. By a superuser; repeatable:
--   psql -d postgres -f roles.sql

-- Two may do this at once.
do $$
declare
  v_name text;
begin
  foreach v_name in array array['broker_owner', 'broker_api', 'broker_worker', 'broker_monitor'] loop
    begin
      if not exists (select from pg_roles where rolname = v_name) then
        execute format('create role %I nologin', v_name);
      end if;
    exception when duplicate_object or unique_violation then null;
    end;
  end loop;
end $$;

-- A follower ends the session of a leader that fell silent (db/leader.ts). That session belongs to the role that logged in,
-- which is another than this, so neither its state nor the right to end it comes by itself.
grant pg_signal_backend, pg_read_all_stats to broker_owner;

-- statistics and settings, but no table
grant pg_monitor to broker_monitor;
