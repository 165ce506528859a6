-- What exporters and people who look may: the views, which run with the rights of their owner. No event, no secret; of the dead
-- letters not the data, nor what may be a part of it. Nothing can be written.
grant usage on schema broker to broker_monitor;

grant select on broker.backlog, broker.in_flight, broker.oldest_waiting, broker.partition, broker.workers to broker_monitor;
grant select (topic, subscription, id, event_id, reason, last_status, attempts, died_at, type) on broker.dead_letters
  to broker_monitor;
-- a view calls functions with the rights of who reads it
grant execute on function broker.partition_span_ms to broker_monitor;
