-- What the API may. Functions run with the caller's rights, so the tables that they touch are named as well. Partitions are
-- only ever reached through `event` and `attempt`: what is granted there holds for those to come.
-- A release only adds here. What it no longer needs is revoked a release later, when none of the one before runs any more.
grant usage on schema broker to broker_api;

grant execute on function
  broker.publish_batch, broker.claim_idempotency_keys, broker.event_delay, broker.event_class, broker.event_attributes,
  broker.id_floor, broker.retention_class_of, broker.ensure_partitions,
  broker.claim, broker.settle, broker.assert_settled_once, broker.not_acked, broker.bury, broker.extend,
  broker.begin_redrive, broker.pause, broker.resume, broker.lock_subscription, broker.sample_backlog,
  broker.set_log_level
  to broker_api;

-- append-only
grant select, insert on broker.event, broker.attempt to broker_api;
grant select, insert, update, delete on broker.queue to broker_api;
grant select, insert, update on broker.idempotency_key to broker_api;
grant select, insert, delete on broker.dead_letter to broker_api;
-- who locks a row must be allowed to change something of it
grant update (last_error) on broker.dead_letter to broker_api;
grant usage on sequence broker.publish_seq, broker.queue_id_seq, broker.dead_letter_id_seq to broker_api;

-- a deletion is a tombstone
grant select, insert, update on broker.topic, broker.subscription to broker_api;
grant select, insert, update, delete on broker.api_key to broker_api;
-- it makes a secret, shows it once, and never looks at one again
grant select (subscription_id), insert, delete on broker.push_secret to broker_api;
grant select, insert on broker.job to broker_api;
grant select, insert, update, delete on broker.backlog_sample to broker_api;
grant select, update on broker.backlog_sampling to broker_api;
grant select, insert, update, delete on broker.worker to broker_api;

grant select, insert, update, delete on broker.log_level to broker_api;

grant select on broker.leader, broker.compatibility, broker.definition, broker.kysely_migration to broker_api;
