-- Topics, the subscriptions that read them, and the keys that open the API.
-- Small tables, rarely written: on Citus they are reference tables, so no sequence but identity, and no triggers.
set local lock_timeout = '5s';

create schema if not exists broker;

create type broker.topic_state as enum ('active', 'deleted');
create type broker.subscription_type as enum ('push', 'pull');
create type broker.subscription_state as enum ('active', 'paused', 'disabled', 'deleted');
create type broker.expiry_policy as enum ('drop', 'dead_letter');

create table broker.topic (
  id int generated always as identity,
  name text not null,
  state broker.topic_state not null default 'active',
  retention_seconds int not null,
  -- the retention rounded up to a class, in hours: what the event partitions are cut by
  retention_class smallint not null,
  -- how long a key of an idempotent publish is remembered
  deduplication_seconds int not null,
  -- whether a CloudEvents id is such a key by itself
  deduplicate_event_ids boolean not null default true,
  max_backlog int not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  deleted_at timestamptz,
  constraint topic_pk primary key (id),
  constraint topic_retention_check check (retention_seconds between 60 and 31536000),
  constraint topic_retention_class_check check (retention_class in (1, 24, 168, 720, 2160, 8760)),
  constraint topic_deduplication_check check (deduplication_seconds between 0 and 2592000),
  constraint topic_max_backlog_check check (max_backlog > 0)
);
-- A name is free again after a deletion; an id never is.
create unique index topic_name_idx on broker.topic (name) where state <> 'deleted';

create table broker.subscription (
  id int generated always as identity,
  topic_id int not null references broker.topic (id),
  name text not null,
  type broker.subscription_type not null,
  state broker.subscription_state not null default 'active',
  -- as it was given: {"exact": {attribute: text}}; null matches everything
  filter jsonb,
  -- the two forms in which publish_batch compares: a column, and containment for the rest
  filter_type text generated always as (filter -> 'exact' ->> 'type') stored,
  filter_attributes jsonb generated always as (nullif((filter -> 'exact') - 'type', '{}'::jsonb)) stored,
  visibility_timeout_seconds int not null,
  max_attempts int not null,
  minimum_backoff_ms int not null,
  maximum_backoff_ms int not null,
  backoff_multiplier double precision not null,
  ordered boolean not null default false,
  max_in_flight int,
  -- whether its backlog may stop the topic's producers
  backpressure boolean not null,
  on_expiry broker.expiry_policy not null default 'drop',
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  deleted_at timestamptz,
  -- when the purge duty found nothing of a deleted subscription any more
  purged_at timestamptz,
  constraint subscription_pk primary key (id),
  constraint subscription_visibility_check check (visibility_timeout_seconds between 1 and 43200),
  constraint subscription_max_attempts_check check (max_attempts between 1 and 1000),
  constraint subscription_backoff_check check (
    minimum_backoff_ms between 0 and maximum_backoff_ms
    and maximum_backoff_ms <= 86400000
    and backoff_multiplier between 1 and 100
  )
);
create unique index subscription_name_idx on broker.subscription (name) where state <> 'deleted';
create index subscription_topic_idx on broker.subscription (topic_id, id);

create table broker.api_key (
  id int generated always as identity,
  name text not null,
  -- SHA-256 of the key; the keys are random, so a slow hash would protect nothing and cost each request
  hash bytea not null,
  -- the key's first characters, so that a person can tell keys apart
  prefix text not null,
  scopes text[] not null,
  -- patterns over topic names ('*' stands for any characters); null opens all
  topics text[],
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  constraint api_key_pk primary key (id),
  constraint api_key_hash_unique unique (hash),
  constraint api_key_scopes_check check (scopes <@ array['publish', 'consume', 'admin'] and cardinality(scopes) > 0)
);
