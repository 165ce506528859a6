create or replace view broker.workers as
select w.instance, w.service, w.version, w.host, w.pid, w.started_at,
    greatest(clock_timestamp() - w.heartbeat_at, interval '0') as heartbeat_age,
    case
      when w.gone_at is not null then 'gone'
      when w.heartbeat_at < clock_timestamp() - interval '10 seconds' then 'silent'
      else 'alive' end as state,
    l.holder is not null as leader
  from broker.worker w
  left join broker.leader l on l.holder = w.instance
 order by w.service, w.instance;
comment on view broker.workers is
  'Processes of every kind that run, or did within the last hour and did not end in order.';
comment on column broker.workers.service is 'api, worker or reaper';
comment on column broker.workers.heartbeat_age is 'they say each second that they live';
comment on column broker.workers.state is
  'alive; silent: not heard of for 10 s; gone: a worker whose leases were taken over';
comment on column broker.workers.leader is 'whether it is the reaper that leads';
