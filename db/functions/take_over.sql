-- Leases of workers that are gone. A worker holds a session advisory lock; its leases end when that lock is free (its process
-- was killed: at once), or when its row is older than 10 s (its host fell silent, or it stands still).

-- The class of those locks; the other half of the key is worker.lock_key.
create or replace function broker.worker_lock_class() returns int
language sql immutable parallel safe as $$ select 7362003 $$;

-- Marks the workers that are gone by now, and returns all that were marked within the last p_look_back_ms: a claim that was
-- under way when its worker was marked may commit that much later. Nobody is marked in the first 5 s of a term or of the server,
-- when workers that live may not have taken their locks again.
-- Rows are locked first and the locks looked at in a new statement, so that a worker which is just coming back is either seen
-- with its lock, or finds itself marked.
create or replace function broker.find_gone_workers(p_term bigint, p_look_back_ms bigint) returns setof text
language plpgsql
set lock_timeout = '500ms'
as $$
declare
  v_now timestamptz;
  v_suspects text[];
begin
  perform broker.assert_term(p_term);
  v_now := clock_timestamp();
  if exists (
    select from broker.leader l
     where v_now >= greatest(l.elected_at, pg_postmaster_start_time()) + interval '5 seconds'
  ) then
    v_suspects := array(select w.instance from broker.worker w where w.gone_at is null and broker.is_gone(w, v_now));
    if v_suspects <> '{}' then
      v_suspects := array(
        select w.instance from broker.worker w
         where w.instance = any (v_suspects) and w.gone_at is null order by w.instance for update);
      v_now := clock_timestamp();
      update broker.worker w set gone_at = v_now
       where w.instance = any (v_suspects) and w.gone_at is null and broker.is_gone(w, v_now);
    end if;
  end if;
  return query
  select w.instance from broker.worker w where w.gone_at > v_now - p_look_back_ms * interval '1 millisecond';
end $$;

-- Of a worker's row; rows of other processes have no lock, and nobody takes anything over from them.
create or replace function broker.is_gone(p_worker broker.worker, p_now timestamptz) returns boolean
language sql stable as $$
  select p_worker.lock_key is not null and (
    p_worker.heartbeat_at < p_now - interval '10 seconds'
    or not exists (
      select from pg_locks k
       where k.locktype = 'advisory' and k.classid::bigint = broker.worker_lock_class() and k.objid::bigint = p_worker.lock_key
         and k.objsubid = 2 and k.granted
         and k.database = (select d.oid from pg_database d where d.datname = current_database())))
$$;

-- The topics in which any of these workers has leases: one short probe of queue_leased_by_idx each.
create or replace function broker.topics_leased_by(p_workers text[]) returns setof int
language plpgsql stable
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
  return query
  select t.id from broker.topic t
   where exists (
     select from unnest(p_workers) w
       cross join lateral (
         select from broker.queue q
          where q.topic_id = t.id and q.leased_by = w and q.leased_by is not null and q.lease_expires_at is not null
          limit 1
       ) l);
end $$;

-- Takes back up to p_limit leases that one gone worker has in one topic. Returns the events taken back, those that died, the
-- subscriptions with something to claim, whether there may be more, and of which subscriptions how many died.
-- Dropped first, because the release before returned fewer columns; in the transaction of all definitions, so that no call finds it gone.
drop function if exists broker.take_over(int, bigint, text, int);
create or replace function broker.take_over(
  p_topic_id int, p_term bigint, p_worker text, p_limit int
) returns table (
  expired_events int, dead_events int, woken int[], more boolean, dead_subscription_ids int[], dead_counts int[]
)
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_leases broker.expired_lease[];
begin
  perform broker.assert_term(p_term);
  v_now := clock_timestamp();

  select array_agg(row(q.publish_id, q.subscription_id, q.id, q.generation, q.retention_class, q.attempt, q.deferrals, q.bytes,
        q.ordinals, q.lease_expires_at, q.leased_by, broker.fate_of(s.state, s.max_attempts, q.generation, q.attempt, q.event_count)
        )::broker.expired_lease)
      into v_leases
    from (
      select l.* from broker.queue l
       where l.topic_id = p_topic_id and l.leased_by = p_worker and l.leased_by is not null and l.lease_expires_at is not null
       limit p_limit
         for update skip locked
    ) q
    cross join lateral (
      select s.max_attempts, s.state from broker.subscription s where s.id = q.subscription_id offset 0
    ) s;

  return query
  select r.expired_events, r.dead_events, r.woken, coalesce(cardinality(v_leases), 0) = p_limit, r.dead_subscription_ids,
      r.dead_counts
    from broker.return_leases(p_topic_id, v_now, v_leases, 'the worker is gone') r;
end $$;
