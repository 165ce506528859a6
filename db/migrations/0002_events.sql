-- What was published and what became of it: append-only, partitioned by retention class and id, dropped whole.
-- Partitions are made by broker.ensure_partitions; there is no default one, so that none is ever in the way of a detach.
set local lock_timeout = '5s';

create sequence broker.publish_seq;

create table broker.event (
  -- id = publish_id << 10 | ordinal; publish_id = ms since 2025-01-01 << 12 | sequence % 4096
  id bigint not null,
  published_at timestamptz not null,
  expires_at timestamptz not null,
  -- the first event that this one is a redriven copy of
  origin_id bigint,
  topic_id int not null,
  retention_class smallint not null,
  type text not null,
  -- the id that the producer gave; without one the broker's own id stands in
  ce_id text,
  source text,
  subject text,
  -- as it was given: a timestamptz would round it and lose its offset
  "time" text,
  datacontenttype text,
  dataschema text,
  ordering_key text,
  extensions json,
  traceparent text,
  tracestate text,
  -- json, not jsonb: its text is handed on as it came, and it is 1.5-1.9 x cheaper to take in
  data json,
  data_binary bytea,
  constraint event_pk primary key (topic_id, retention_class, id)
) partition by range (retention_class, id);

create type broker.attempt_outcome as enum (
  'acked', 'nacked', 'released', 'deferred', 'dead', 'expired', 'lease_expired'
);

-- One row per settle, entry and outcome (pull), or per request sent (push).
create table broker.attempt (
  publish_id bigint not null,
  entry_id bigint not null,
  settled_at timestamptz not null,
  topic_id int not null,
  subscription_id int not null,
  generation int not null,
  attempt int not null,
  retention_class smallint not null,
  first_ordinal smallint not null,
  outcome broker.attempt_outcome not null,
  ordinals smallint[] not null,
  worker text,
  error text,
  status int,
  duration_ms int,
  response bytea,
  constraint attempt_pk primary key (
    topic_id, retention_class, publish_id, subscription_id, entry_id, generation, first_ordinal
  )
) partition by range (retention_class, publish_id);
