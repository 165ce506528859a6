-- One probe of queue_claim_idx per subscription. statement_timestamp() is stable and may bound it; clock_timestamp() may not.
create or replace view broker.oldest_waiting as
select t.name as topic, s.name as subscription, (q.publish_id << 10) + q.ordinals[1] as event_id, q.available_at,
    statement_timestamp() - q.available_at as age, q.attempt
  from broker.subscription s
  join broker.topic t on t.id = s.topic_id
  cross join lateral (
    select e.publish_id, e.ordinals, e.available_at, e.attempt from broker.queue e
     where e.topic_id = s.topic_id and e.subscription_id = s.id and e.priority = 0
       and e.lease_expires_at is null and e.lane_seq is null and e.available_at <= statement_timestamp()
     order by e.available_at, e.id limit 1
  ) q
 where s.state <> 'deleted'
 order by q.available_at;
comment on view broker.oldest_waiting is
  'The event that has been due for longest, of each subscription that has one; the longest first.';
comment on column broker.oldest_waiting.event_id is 'the broker''s id';
comment on column broker.oldest_waiting.available_at is 'when it was due';
comment on column broker.oldest_waiting.age is 'how late it is';
comment on column broker.oldest_waiting.attempt is 'deliveries begun; 0: none yet';
