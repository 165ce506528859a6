create or replace view broker.dead_letters as
select t.name as topic, s.name as subscription, d.id, coalesce(d.origin_id, d.event_id) as event_id, d.reason, d.last_status,
    d.last_error, d.attempts, d.died_at, d.type, d.subject, d.data
  from broker.dead_letter d
  join broker.subscription s on s.id = d.subscription_id and s.state <> 'deleted'
  join broker.topic t on t.id = d.topic_id;
comment on view broker.dead_letters is
  'Events that a subscription gave up, with their data. redrive(subscription) puts them back to its queue.';
comment on column broker.dead_letters.id is 'of the dead letter, in the order in which they died';
comment on column broker.dead_letters.event_id is 'the broker''s id, as receivers saw it; after a redrive the first one';
comment on column broker.dead_letters.reason is
  'max_attempts: its attempts are used up; rejected: it was refused for good; expired: its retention ended';
comment on column broker.dead_letters.last_status is 'push: HTTP status of the last answer; null where none came';
comment on column broker.dead_letters.last_error is 'what the consumer or the worker said last';
comment on column broker.dead_letters.attempts is 'deliveries begun';
