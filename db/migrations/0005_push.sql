-- Push: where a subscription's events are sent, which process sends them, and what was answered.
set local lock_timeout = '5s';

create type broker.push_mode as enum ('cloudevents_binary', 'cloudevents_structured', 'raw');

alter table broker.subscription
  add column push_endpoint text,
  add column push_mode broker.push_mode,
  -- {name: text}, sent with every request; ours win
  add column push_headers jsonb,
  add column push_timeout_ms int,
  -- whether answers such as 400 are tried again instead of becoming a dead letter at once
  add column retry_client_errors boolean not null default false,
  add column disabled_reason text,
  add constraint subscription_push_check check (
    case type when 'push' then num_nulls(push_endpoint, push_mode, push_headers, push_timeout_ms) = 0
      else num_nonnulls(push_endpoint, push_mode, push_headers, push_timeout_ms) = 0 end
  ),
  add constraint subscription_push_timeout_check check (push_timeout_ms between 100 and 60000);

-- A table of its own, so that who may read subscriptions need not see this: nobody but the owner is granted anything on it.
create table broker.push_secret (
  subscription_id int not null,
  -- of the key that `sealed` was encrypted with; null: it is the secret itself
  key_id text,
  sealed bytea not null,
  created_at timestamptz not null default clock_timestamp(),
  constraint push_secret_pk primary key (subscription_id),
  constraint push_secret_subscription_fk foreign key (subscription_id) references broker.subscription (id)
);
revoke all on broker.push_secret from public;

-- What a worker's session lock is taken on. Never the same for two that live: a name may come back, a number does not.
create sequence broker.worker_lock_seq as int cycle;
alter table broker.worker
  -- of a worker: its leases end when the session lock on this is free
  add column lock_key int,
  -- since when its leases are being taken over; a claim of it is refused from then on
  add column gone_at timestamptz;

alter table broker.dead_letter add column last_status int;
alter type broker.dying_event add attribute status int;
alter type broker.settle_part
  add attribute status int, add attribute duration_ms int, add attribute response bytea, add attribute leased_by text;

-- It has other arguments from here on (functions/settle.sql): nothing was released with these.
drop function if exists broker.settle(int, int, bigint[], bigint[], int[], smallint[], text[], text[], bigint[], text[], text);

alter table broker.job
  -- null: as fast as it goes
  add column rate_per_second int,
  add column started_at timestamptz,
  add constraint job_rate_check check (rate_per_second between 1 and 100000);
