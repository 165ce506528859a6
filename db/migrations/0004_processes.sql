-- Who runs, who leads, what they are busy with, and what they measured.
set local lock_timeout = '5s';

-- One row per process of any kind; the heartbeat is its only regular write.
create table broker.worker (
  instance text not null,
  service text not null,
  version text not null,
  host text not null,
  pid int not null,
  started_at timestamptz not null default clock_timestamp(),
  heartbeat_at timestamptz not null default clock_timestamp(),
  constraint worker_pk primary key (instance)
);

create table broker.leader (
  only_row boolean not null default true,
  -- raised by each election; every duty shows it, and one that shows an older is refused
  term bigint not null,
  holder text,
  backend_pid int,
  elected_at timestamptz,
  heartbeat_at timestamptz,
  constraint leader_pk primary key (only_row),
  constraint leader_only_row_check check (only_row),
  -- makes a change of the term a change of a key: it waits for the duties that hold the row FOR KEY SHARE, while a
  -- heartbeat does not (assert_term)
  constraint leader_term_unique unique (term)
);
insert into broker.leader (term) values (0);

create type broker.job_type as enum ('redrive', 'replay');
create type broker.job_state as enum ('waiting', 'running', 'succeeded', 'failed');

create table broker.job (
  id bigint generated always as identity,
  type broker.job_type not null,
  state broker.job_state not null default 'waiting',
  topic_id int not null,
  subscription_id int not null,
  -- dead letters that came after the job was made are not its business
  last_dead_letter_id bigint,
  total int not null,
  done int not null default 0,
  error text,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  constraint job_pk primary key (id)
);
create index job_unfinished_idx on broker.job (id) where state in ('waiting', 'running');

create table broker.backlog_sample (
  topic_id int not null,
  subscription_id int not null,
  waiting_events bigint not null,
  leased_events bigint not null,
  dead_letters bigint not null,
  oldest_waiting_at timestamptz,
  sampled_at timestamptz not null,
  constraint backlog_sample_pk primary key (topic_id, subscription_id)
);

create table broker.backlog_sampling (
  only_row boolean not null default true,
  sampled_at timestamptz not null default '-infinity',
  duration_ms int not null default 0,
  constraint backlog_sampling_pk primary key (only_row),
  constraint backlog_sampling_only_row_check check (only_row)
);
insert into broker.backlog_sampling default values;

-- What a process must know at least to work with this database: raised by a migration that takes something away.
create table broker.compatibility (
  only_row boolean not null default true,
  minimum_migration text not null,
  constraint compatibility_pk primary key (only_row),
  constraint compatibility_only_row_check check (only_row)
);
insert into broker.compatibility (minimum_migration) values ('0001_topics');

-- The functions and views as they were last created, by the hash of their files.
create table broker.definition (
  path text not null,
  hash text not null,
  applied_at timestamptz not null default clock_timestamp(),
  constraint definition_pk primary key (path)
);
