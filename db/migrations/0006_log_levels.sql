-- How much the processes tell in their logs, for a while, without a restart.
set local lock_timeout = '5s';

create table broker.log_level (
  -- '*': of all processes that have no row of their own
  service text not null,
  level text not null,
  -- it ends by itself
  until timestamptz not null,
  constraint log_level_pk primary key (service),
  constraint log_level_service_check check (service in ('*', 'api', 'worker', 'reaper', 'standalone')),
  constraint log_level_level_check check (level in ('fatal', 'error', 'warn', 'info', 'debug', 'trace'))
);
