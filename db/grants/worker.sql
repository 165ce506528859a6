-- What the push worker may; api.sql says how such a list is kept.
grant usage on schema broker to broker_worker;

grant execute on function
  broker.due, broker.claim, broker.settle, broker.assert_settled_once, broker.not_acked, broker.bury, broker.worker_lock_class
  to broker_worker;

grant select on broker.event to broker_worker;
-- append-only; it looks for what it acked before
grant select, insert on broker.attempt to broker_worker;
grant select, insert, update, delete on broker.queue to broker_worker;
grant insert on broker.dead_letter to broker_worker;
grant usage on sequence broker.queue_id_seq, broker.dead_letter_id_seq, broker.worker_lock_seq to broker_worker;

grant select (id, name, state) on broker.topic to broker_worker;
grant select on broker.subscription to broker_worker;
-- an endpoint that says that it is gone
grant update (state, disabled_reason, updated_at) on broker.subscription to broker_worker;
-- what it signs with
grant select on broker.push_secret to broker_worker;
-- `gone_at` is the leader's
grant select, delete on broker.worker to broker_worker;
grant insert (instance, service, version, host, pid, lock_key), update (heartbeat_at) on broker.worker to broker_worker;

grant select on broker.log_level, broker.leader, broker.compatibility, broker.definition, broker.kysely_migration to broker_worker;
