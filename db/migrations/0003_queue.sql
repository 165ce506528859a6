-- The table of work and what stands beside it.
set local lock_timeout = '5s';

create sequence broker.queue_id_seq;

-- One row: up to 100 events (1 MiB) of one publish that are due together for one subscription.
create table broker.queue (
  publish_id bigint not null,
  id bigint not null default nextval('broker.queue_id_seq'),
  available_at timestamptz not null,
  lease_expires_at timestamptz,
  -- the place behind a lane; null for everything that is not ordered
  lane_seq bigint,
  topic_id int not null,
  subscription_id int not null,
  event_count int not null,
  bytes int not null,
  generation int not null default 0,
  attempt int not null default 0,
  deferrals smallint not null default 0,
  priority smallint not null default 0,
  retention_class smallint not null,
  isolated boolean not null default false,
  ordinals smallint[] not null,
  leased_by text,
  ordering_key text,
  -- publish_id first: PostgreSQL 15 may take `= any(…)` on a later column as a filter, and read the whole prefix
  constraint queue_pk primary key (publish_id, topic_id, subscription_id, id),
  constraint queue_event_count_check check (event_count = cardinality(ordinals) and event_count between 1 and 100),
  constraint queue_bytes_check check (bytes > 0)
) with (
  -- rows come and go by the million: vacuum by count, not by share of a table whose size is never the same
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 1,
  autovacuum_analyze_scale_factor = 0.1
);
create index queue_claim_idx on broker.queue (topic_id, subscription_id, priority, available_at, id)
  where lease_expires_at is null and lane_seq is null;
create index queue_lane_idx on broker.queue (topic_id, subscription_id, ordering_key, lane_seq)
  where lane_seq is not null;
create index queue_lease_idx on broker.queue (topic_id, lease_expires_at)
  where lease_expires_at is not null;
-- leases of a process; those of pull consumers belong to none and stay out of it
create index queue_leased_by_idx on broker.queue (topic_id, leased_by)
  where lease_expires_at is not null and leased_by is not null;

create type broker.dead_letter_reason as enum ('max_attempts', 'rejected', 'expired');

create sequence broker.dead_letter_id_seq;

-- A copy of the event, so that it outlives the event's partition.
create table broker.dead_letter (
  id bigint not null default nextval('broker.dead_letter_id_seq'),
  event_id bigint not null,
  origin_id bigint,
  died_at timestamptz not null,
  published_at timestamptz not null,
  topic_id int not null,
  subscription_id int not null,
  attempts int not null,
  reason broker.dead_letter_reason not null,
  last_error text,
  type text not null,
  ce_id text,
  source text,
  subject text,
  "time" text,
  datacontenttype text,
  dataschema text,
  ordering_key text,
  extensions json,
  traceparent text,
  tracestate text,
  data json,
  data_binary bytea,
  constraint dead_letter_pk primary key (topic_id, subscription_id, id)
);
create index dead_letter_event_idx on broker.dead_letter (topic_id, event_id);

create table broker.idempotency_key (
  -- first 16 bytes of SHA-256, of a request's key and of an event's (source, id) apart
  key bytea not null,
  fingerprint bytea not null,
  publish_id bigint not null,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  topic_id int not null,
  first_ordinal smallint not null,
  event_count smallint not null,
  constraint idempotency_key_pk primary key (topic_id, key)
);
create index idempotency_key_expiry_idx on broker.idempotency_key (topic_id, expires_at);

-- What publish_batch has cut and not yet written.
create type broker.new_entry as (
  subscription_id int, retention_class smallint, available_at timestamptz, ordinals smallint[], bytes int
);

-- What settle saw of an entry for one of its elements: the entry as it was held, and the part that the element hits.
create type broker.settle_part as (
  element int, publish_id bigint, entry_id bigint, generation int, retention_class smallint, attempt int,
  deferrals smallint, isolated boolean, bytes int, held smallint[], hit smallint[], outcome text, delay_ms bigint, error text
);

-- A lease that ran out, and what reap makes of it: deleted | dead | singles | isolated | waiting.
create type broker.expired_lease as (
  publish_id bigint, subscription_id int, entry_id bigint, generation int, retention_class smallint, attempt int,
  deferrals smallint, bytes int, ordinals smallint[], lease_expires_at timestamptz, leased_by text, fate text
);

-- An event that becomes a dead letter.
create type broker.dying_event as (
  subscription_id int, retention_class smallint, event_id bigint, attempts int, reason broker.dead_letter_reason, error text
);
