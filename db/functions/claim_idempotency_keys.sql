-- Part of publish_batch: takes the keys of a batch, or finds out who has them.
-- A request's own key is looked at first: what it repeats is not stored again, whatever keys its events carry.
create or replace function broker.claim_idempotency_keys(
  p_topic_id int,
  p_publish_id bigint,
  p_now timestamptz,
  p_window interval,
  p_ids bigint[],
  p_outcomes text[],
  p_requests int[],
  p_event_keys bytea[],
  p_event_fingerprints bytea[],
  p_request_keys bytea[],
  p_request_fingerprints bytea[]
) returns table (ids bigint[], outcomes text[])
language plpgsql as $$
declare
  v_ids bigint[] := p_ids;
  v_outcomes text[] := coalesce(p_outcomes, array_fill(null::text, array[cardinality(p_ids)]));
  v_open boolean[];
begin
  if p_request_keys is not null then
    insert into broker.idempotency_key as k (topic_id, key, fingerprint, publish_id, first_ordinal, event_count, created_at, expires_at)
    -- of the requests with one key, the first that was not refused: who is refused takes nothing
    select distinct on (u.key) p_topic_id, u.key, u.fingerprint, p_publish_id, f.first_ordinal, f.event_count, p_now, p_now + p_window
      from unnest(p_request_keys, p_request_fingerprints) with ordinality u(key, fingerprint, request)
      join (
        select e.request, (min(e.ordinality) - 1)::smallint as first_ordinal, count(*)::smallint as event_count
          from unnest(p_requests, v_outcomes) with ordinality e(request, outcome, ordinality)
         group by e.request having count(e.outcome) = 0
      ) f on f.request = u.request
     where u.key is not null
     order by u.key, u.request
    on conflict (topic_id, key) do update
      set fingerprint = excluded.fingerprint, publish_id = excluded.publish_id, first_ordinal = excluded.first_ordinal,
          event_count = excluded.event_count, created_at = excluded.created_at, expires_at = excluded.expires_at
      where k.expires_at <= excluded.created_at;

    select array_agg(coalesce(x.id, x.known_id) order by x.ordinality),
        array_agg(coalesce(x.known, x.outcome) order by x.ordinality)
      into v_ids, v_outcomes
      from (
        select e.ordinality, e.id as known_id, e.outcome as known,
            case when k.mine or k.fingerprint is null then null
              when k.fingerprint <> r.fingerprint then 'request_conflict'
              else 'request_duplicate' end as outcome,
            case when k.fingerprint = r.fingerprint and not k.mine
              then ((k.publish_id << 10) + k.first_ordinal + e.ordinality - e.first) end as id
          from (
            select u.request, u.id, u.outcome, u.ordinality, min(u.ordinality) over (partition by u.request) as first
              from unnest(p_requests, v_ids, v_outcomes) with ordinality u(request, id, outcome, ordinality)
          ) e
          left join unnest(p_request_keys, p_request_fingerprints) with ordinality r(key, fingerprint, request)
            on r.request = e.request
          left join lateral (
            select i.fingerprint, i.publish_id, i.first_ordinal,
                i.publish_id = p_publish_id and i.first_ordinal = e.first - 1 as mine
              from broker.idempotency_key i
             where i.topic_id = p_topic_id and i.key = r.key
            offset 0
          ) k on true
      ) x;
  end if;

  if p_event_keys is not null then
    v_open := array(select o is null from unnest(v_outcomes) o);
    insert into broker.idempotency_key as k (topic_id, key, fingerprint, publish_id, first_ordinal, event_count, created_at, expires_at)
    select distinct on (u.key) p_topic_id, u.key, u.fingerprint, p_publish_id, (u.ordinality - 1)::smallint, 1, p_now, p_now + p_window
      from unnest(p_event_keys, p_event_fingerprints, v_open) with ordinality u(key, fingerprint, open, ordinality)
     where u.key is not null and u.open
     order by u.key, u.ordinality
    on conflict (topic_id, key) do update
      set fingerprint = excluded.fingerprint, publish_id = excluded.publish_id, first_ordinal = excluded.first_ordinal,
          event_count = excluded.event_count, created_at = excluded.created_at, expires_at = excluded.expires_at
      where k.expires_at <= excluded.created_at;

    -- a repeated request is answered, event by event, from the events' own keys where they have some
    select array_agg(coalesce(x.id, x.known_id) order by x.ordinality),
        array_agg(coalesce(x.outcome, x.known) order by x.ordinality)
      into v_ids, v_outcomes
      from (
        select u.ordinality, u.id as known_id, u.known,
            case when u.known is distinct from null and u.known <> 'request_duplicate' then null
              when k.mine or k.fingerprint is null then null
              when k.fingerprint <> u.fingerprint then 'conflict'
              else 'duplicate' end as outcome,
            case when k.fingerprint = u.fingerprint and not k.mine and coalesce(u.known, 'request_duplicate') = 'request_duplicate'
              then (k.publish_id << 10) + k.first_ordinal end as id
          from unnest(p_event_keys, p_event_fingerprints, v_outcomes, v_ids)
            with ordinality u(key, fingerprint, known, id, ordinality)
          left join lateral (
            select i.fingerprint, i.publish_id, i.first_ordinal,
                i.publish_id = p_publish_id and i.first_ordinal = u.ordinality - 1 as mine
              from broker.idempotency_key i
             where i.topic_id = p_topic_id and i.key = u.key
            offset 0
          ) k on true
      ) x;
  end if;

  return query select v_ids, array(select case o when 'request_duplicate' then 'duplicate' else o end from unnest(v_outcomes) o);
end $$;
