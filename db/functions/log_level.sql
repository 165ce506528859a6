-- What operators call to see more of some processes for a while; the API calls the same. The change is told with the commit,
-- and looked for each 30 s by who did not hear of it. A row of one service goes before that of all.
create or replace function broker.set_log_level(p_level text, p_service text default '*', p_for interval default '10 minutes')
returns timestamptz
language plpgsql as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  if p_service is null or p_service not in ('*', 'api', 'worker', 'reaper', 'standalone') then
    raise exception 'there is no service %', coalesce(p_service, 'null')
      using errcode = '22023', hint = 'One of api, worker, reaper, standalone (npm start), or * for all of them.';
  end if;
  if p_level is null or p_level not in ('fatal', 'error', 'warn', 'info', 'debug', 'trace') then
    raise exception 'there is no log level %', coalesce(p_level, 'null')
      using errcode = '22023', hint = 'One of fatal, error, warn, info, debug, trace.';
  end if;
  if p_for is null or p_for not between interval '0' and interval '24 hours' then
    raise exception 'a log level lasts 24 hours at most, and not %', coalesce(p_for::text, 'null')
      using errcode = '22023', hint = 'An interval of 0 ends what was set before.';
  end if;
  delete from broker.log_level l where l.until <= v_now or (l.service = p_service and p_for = interval '0');
  if p_for > interval '0' then
    insert into broker.log_level (service, level, until) values (p_service, p_level, v_now + p_for)
      on conflict (service) do update set level = excluded.level, until = excluded.until;
  end if;
  perform pg_notify('broker_changed', 'log_level ' || p_service);
  return case when p_for > interval '0' then v_now + p_for end;
end $$;
comment on function broker.set_log_level(text, text, interval) is
  'Makes the processes of a service (api, worker, reaper, standalone; * is all of them) write log lines from this level on, for so long, 24 hours at most; then LOG_LEVEL holds again. An interval of 0 ends it now. Returns when it ends.';
