-- Ends leases: element i says what became of some events (p_ordinals[i], as '{0,1,2}') of one leased entry.
-- Outcomes: acked | nacked (a delay, or null for the policy's backoff) | released (not begun) | rejected (dead letter now) |
-- deferred (the receiver asked for a delay, of an hour at most: costs no attempt, but from the tenth in a row on it is a nack).
-- A push delivery is an element of its own, with the status and the first bytes of its answer and how long it took.
--
-- Why this shape
--  * The rows are locked in key order first and looked at in a statement of its own: in one statement the look would be of
--    the snapshot before the lock was waited for.
--  * A row is matched by its full key and the generation, and by no column of a partial index's predicate: a waiting row
--    never carries a generation that was leased, and the planner would take the smaller index and read all leases.
--  * What was seen goes into an array of settle_part; every later statement works from that, so none has a plan to choose.
--  * Events leave their entry; the row goes with its last one. What was nacked becomes a new waiting row, one per distinct delay.
--
-- Returns a row per element: what was settled and how ('dead' where the attempts were used up), and which ordinals were
-- not this lease's any more. A repeated ack under the same generation is no loss: `attempt` remembers it.
create or replace function broker.settle(
  p_topic_id int,
  p_subscription_id int,
  p_publish_ids bigint[],
  p_entry_ids bigint[],
  p_generations int[],
  p_retention_classes smallint[],
  p_ordinals text[],
  p_outcomes text[],
  p_delays_ms bigint[],
  p_errors text[],
  p_statuses int[],
  p_durations_ms int[],
  p_responses bytea[]
) returns table (element int, outcome text, settled smallint[], lost smallint[])
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
  v_subscription record;
  v_now timestamptz;
  v_parts broker.settle_part[];
  v_part record;
  v_publish_ids bigint[];
  v_entry_ids bigint[];
  v_partial_ids bigint[];
  v_dying broker.dying_event[];
begin
  select s.max_attempts, s.minimum_backoff_ms, s.maximum_backoff_ms, s.backoff_multiplier into v_subscription
    from broker.subscription s
   where s.id = p_subscription_id and s.topic_id = p_topic_id and s.state <> 'deleted';
  if not found then
    return query select u.ordinality::int, u.outcome, '{}'::smallint[], u.ordinals::smallint[]
      from unnest(p_outcomes, p_ordinals) with ordinality u(outcome, ordinals, ordinality);
    return;
  end if;

  perform from (
      select distinct u.publish_id, u.entry_id, u.generation
        from unnest(p_publish_ids, p_entry_ids, p_generations) u(publish_id, entry_id, generation)
       order by 1, 2, 3
    ) k
    cross join lateral (
      select from broker.queue q
       where q.topic_id = p_topic_id and q.publish_id = k.publish_id and q.subscription_id = p_subscription_id
         and q.id = k.entry_id and q.generation = k.generation
         for update
    ) locked;
  v_now := clock_timestamp();

  select array_agg(row(u.ordinality, q.publish_id, q.id, q.generation, q.retention_class, q.attempt, q.deferrals,
        q.isolated, q.bytes, q.ordinals,
        case when u.ordinals = q.ordinals then q.ordinals
          else array(select distinct o from unnest(u.ordinals) o where o = any (q.ordinals) order by o) end,
        case
          when u.outcome = 'acked' then 'acked'
          when u.outcome = 'released' then 'released'
          when u.outcome = 'rejected' then 'rejected'
          when u.outcome = 'deferred' and q.deferrals < 9 then 'deferred'
          when q.attempt >= v_subscription.max_attempts then 'exhausted'
          else 'nacked' end,
        case u.outcome when 'nacked' then u.delay_ms when 'deferred' then least(u.delay_ms, 3600000) end,
        u.error, u.status, u.duration_ms, u.response, q.leased_by)::broker.settle_part order by u.ordinality)
      into v_parts
    from (
      select x.publish_id, x.entry_id, x.generation, x.ordinals::smallint[] as ordinals, x.outcome, x.delay_ms, x.error,
          x.status, x.duration_ms, x.response, x.ordinality
        from unnest(p_publish_ids, p_entry_ids, p_generations, p_ordinals, p_outcomes, p_delays_ms, p_errors,
            p_statuses, p_durations_ms, p_responses)
          with ordinality x(publish_id, entry_id, generation, ordinals, outcome, delay_ms, error, status, duration_ms,
            response, ordinality)
    ) u
    cross join lateral (
      select q.* from broker.queue q
       where q.topic_id = p_topic_id and q.publish_id = u.publish_id and q.subscription_id = p_subscription_id
         and q.id = u.entry_id and q.generation = u.generation
      offset 0
    ) q;

  if v_parts is not null then
    perform broker.assert_settled_once(v_parts);

    if exists (select from unnest(v_parts) p where p.outcome in ('nacked', 'released', 'deferred') and p.hit <> '{}') then
      insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at,
        attempt, deferrals, isolated, retention_class)
      select p_topic_id, g.publish_id, p_subscription_id, g.ordinals, cardinality(g.ordinals),
          greatest(1, g.bytes::bigint * cardinality(g.ordinals) / g.held)::int,
          case
            when g.outcome = 'released' then v_now
            when g.delay_ms is not null then v_now + g.delay_ms * interval '1 millisecond'
            -- full jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
            else v_now + random() * interval '1 millisecond' * least(v_subscription.maximum_backoff_ms,
              v_subscription.minimum_backoff_ms * power(v_subscription.backoff_multiplier, least(g.attempt - 1, 64))) end,
          case when g.outcome = 'nacked' then g.attempt else g.attempt - 1 end,
          case when g.outcome = 'deferred' then g.deferrals + 1 else g.deferrals end, g.isolated and g.outcome = 'released', g.retention_class
        from (
          select p.publish_id, p.entry_id, p.outcome, p.delay_ms, p.attempt, p.deferrals, p.isolated, p.retention_class, p.bytes,
              cardinality(p.held) as held, array_agg(o order by o) as ordinals
            from unnest(v_parts) p, unnest(p.hit) o
           where p.outcome in ('nacked', 'released', 'deferred')
           group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
        ) g;
    end if;

    v_dying := array(
      select row(p_subscription_id, p.retention_class, (p.publish_id << 10) + o, p.attempt,
          case p.outcome when 'rejected' then 'rejected' else 'max_attempts' end, p.error,
          p.status)::broker.dying_event
        from unnest(v_parts) p, unnest(p.hit) o where p.outcome in ('rejected', 'exhausted'));
    if v_dying <> '{}' then
      perform broker.bury(p_topic_id, v_now, v_dying);
    end if;

    insert into broker.attempt (topic_id, subscription_id, publish_id, entry_id, generation, attempt, retention_class,
      first_ordinal, ordinals, outcome, settled_at, worker, error, status, duration_ms, response)
    select p_topic_id, p_subscription_id, p.publish_id, p.entry_id, p.generation, p.attempt, p.retention_class,
        p.hit[1], p.hit,
        case when p.outcome in ('rejected', 'exhausted') then 'dead' else p.outcome end::broker.attempt_outcome,
        v_now, p.leased_by, p.error, p.status, p.duration_ms, p.response
      from unnest(v_parts) p where p.hit <> '{}';

    select array_agg(g.publish_id) filter (where g.whole), array_agg(g.entry_id) filter (where g.whole),
        array_agg(g.entry_id) filter (where not g.whole)
        into v_publish_ids, v_entry_ids, v_partial_ids
      from (
        select p.publish_id, p.entry_id, sum(cardinality(p.hit)) = max(cardinality(p.held)) as whole
          from unnest(v_parts) p where p.hit <> '{}' group by p.publish_id, p.entry_id
      ) g;
    if v_entry_ids is not null then
      delete from broker.queue q
       where q.topic_id = p_topic_id and q.publish_id = any (v_publish_ids)
         and q.subscription_id = p_subscription_id and q.id + 0 = any (v_entry_ids);
    end if;
    if v_partial_ids is not null then
      for v_part in
        select g.publish_id, g.entry_id, array(select o from unnest(g.held) o where o <> all (g.gone) order by o) as remaining,
            greatest(1, g.bytes::bigint * (cardinality(g.held) - cardinality(g.gone)) / cardinality(g.held))::int as bytes
          from (
            select p.publish_id, p.entry_id, p.held, p.bytes, array_agg(o) as gone
              from unnest(v_parts) p, unnest(p.hit) o where p.entry_id = any (v_partial_ids)
             group by p.publish_id, p.entry_id, p.held, p.bytes
          ) g
      loop
        update broker.queue q
           set ordinals = v_part.remaining, event_count = cardinality(v_part.remaining), bytes = v_part.bytes
         where q.topic_id = p_topic_id and q.publish_id = v_part.publish_id
           and q.subscription_id = p_subscription_id and q.id = v_part.entry_id;
      end loop;
    end if;
  end if;

  return query
  select u.ordinality::int,
      case when p.outcome in ('rejected', 'exhausted') then 'dead' else coalesce(p.outcome, u.outcome) end,
      coalesce(p.hit, '{}'),
      case when cardinality(coalesce(p.hit, '{}')) = cardinality(u.ordinals) then '{}'::smallint[]
        when u.outcome <> 'acked' then array(select o from unnest(u.ordinals) o where o <> all (coalesce(p.hit, '{}')))
        else broker.not_acked(p_topic_id, p_subscription_id, u.retention_class, u.publish_id, u.entry_id, u.generation,
          array(select o from unnest(u.ordinals) o where o <> all (coalesce(p.hit, '{}')))) end
    from (
      select x.publish_id, x.entry_id, x.generation, x.retention_class, x.ordinals::smallint[] as ordinals, x.outcome, x.ordinality
        from unnest(p_publish_ids, p_entry_ids, p_generations, p_retention_classes, p_ordinals, p_outcomes)
          with ordinality x(publish_id, entry_id, generation, retention_class, ordinals, outcome, ordinality)
    ) u
    left join unnest(v_parts) p on p.element = u.ordinality;
end $$;

-- Which of these ordinals were not acked under this generation before. In a function of its own, so that only a miss pays
-- for planning a look into a partitioned table.
create or replace function broker.not_acked(
  p_topic_id int, p_subscription_id int, p_retention_class smallint, p_publish_id bigint, p_entry_id bigint,
  p_generation int, p_ordinals smallint[]
) returns smallint[]
language plpgsql stable as $$
begin
  return array(
    select o from unnest(p_ordinals) o
     where not exists (
       select from broker.attempt a
        where a.topic_id = p_topic_id and a.retention_class = p_retention_class and a.publish_id = p_publish_id
          and a.subscription_id = p_subscription_id and a.entry_id = p_entry_id and a.generation = p_generation
          and a.outcome = 'acked' and o = any (a.ordinals)));
end $$;

create or replace function broker.assert_settled_once(p_parts broker.settle_part[]) returns void
language plpgsql as $$
begin
  if cardinality(p_parts) > (select count(distinct p.entry_id) from unnest(p_parts) p) and exists (
    select from unnest(p_parts) p, unnest(p.hit) o group by p.entry_id, o having count(*) > 1
  ) then
    raise exception 'an event is settled twice in one call' using errcode = 'invalid_parameter_value';
  end if;
end $$;
