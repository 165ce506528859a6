-- From the last sample of the leader and not from the queue, which may be large: fresh to about a second.
create or replace view broker.backlog as
select t.name as topic, s.name as subscription, s.type, s.state, b.waiting_events, b.leased_events, b.dead_letters,
    b.oldest_waiting_at,
    case when b.oldest_waiting_at is not null then greatest(clock_timestamp() - b.oldest_waiting_at, interval '0') end
      as oldest_waiting_age,
    b.sampled_at
  from broker.subscription s
  join broker.topic t on t.id = s.topic_id
  left join broker.backlog_sample b on b.topic_id = s.topic_id and b.subscription_id = s.id
 where s.state <> 'deleted'
 order by t.name, s.name;
comment on view broker.backlog is
  'How much each subscription has to do, by the last sample of the leader; numbers are null until it was sampled.';
comment on column broker.backlog.state is 'active, paused or disabled; resume(subscription) undoes the last two';
comment on column broker.backlog.waiting_events is 'not leased, whether due yet or not';
comment on column broker.backlog.leased_events is 'handed out and not yet settled';
comment on column broker.backlog.dead_letters is 'given up; redrive(subscription) puts them back. Counted each 5 s';
comment on column broker.backlog.oldest_waiting_at is 'since when the first event is due that waits; null: none is due';
comment on column broker.backlog.oldest_waiting_age is 'how late that event is';
comment on column broker.backlog.sampled_at is 'an old one: no process leads';
