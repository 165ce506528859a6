-- Straight from the queue, by its index of leases: as long as the list of them.
create or replace view broker.in_flight as
select t.name as topic, s.name as subscription, q.event_count as events, q.attempt, q.generation, q.leased_by,
    q.lease_expires_at, (q.publish_id << 10) + q.ordinals[1] as first_event_id
  from broker.queue q
  join broker.subscription s on s.id = q.subscription_id and s.state <> 'deleted'
  join broker.topic t on t.id = q.topic_id
 where q.lease_expires_at is not null;
comment on view broker.in_flight is 'Queue entries that are leased at this moment.';
comment on column broker.in_flight.events is 'of the entry, handed out together';
comment on column broker.in_flight.attempt is 'of these events: 1 the first time';
comment on column broker.in_flight.generation is 'fencing number: a settle of an earlier one changes nothing';
comment on column broker.in_flight.leased_by is 'the worker that sends them; null: a pull consumer has them';
comment on column broker.in_flight.lease_expires_at is 'when the reaper takes them back; long before, where their worker is gone';
comment on column broker.in_flight.first_event_id is 'broker''s id of the first of them';
