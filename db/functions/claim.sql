-- Leases what is due, for some subscriptions of one topic, up to a room of events and bytes for each.
--
-- Why this shape
--  * Candidates come one at a time from a cursor in the order of queue_claim_idx (FOR UPDATE SKIP LOCKED), until the room
--    is full: nothing is locked that is not taken, so two claimers never leave each other empty-handed. LIMIT n locks n.
--  * It starts at the caller's low-water mark, so index entries that a held snapshot keeps are not walked again and again.
--  * The rows are found again by their full primary key out of arrays: joins, ctid and UPDATE ... FROM flip to a scan of
--    everything on a table that was analysed when it was small.
--  * `offset 0` keeps the planner from flattening the read of the events into a hash join over the whole table.
--  * An isolated event travels alone: it ends a claim that already holds something, and nothing follows it. Not so for a
--    worker, which sends each event in a request of its own.
--  * A worker that was marked as gone claims nothing more: what it holds is being taken over, and that ends some time.
--
-- One row per event. `due_at` of the last row is what the caller remembers as its mark; `more` says that something due is left.
create or replace function broker.claim(
  p_topic_id int,
  p_subscription_ids int[],
  p_event_rooms int[],
  p_byte_rooms int[],
  p_marks timestamptz[],
  p_lease_ms bigint,
  p_leased_by text
) returns table (
  subscription_id int, publish_id bigint, entry_id bigint, generation int, attempt int, isolated boolean,
  retention_class smallint, due_at timestamptz, lease_expires_at timestamptz, more boolean, ordinal smallint,
  event_id bigint, published_at timestamptz, ce_id text, source text, type text, subject text, "time" text,
  datacontenttype text, dataschema text, ordering_key text, extensions json, traceparent text, tracestate text, data json
)
language plpgsql
set lock_timeout = '500ms'
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_lease_expires_at timestamptz := v_now + p_lease_ms * interval '1 millisecond';
  v_subscription_id int;
  v_mark timestamptz;
  v_event_room int;
  v_byte_room bigint;
  v_publish_ids bigint[];
  v_entry_ids bigint[];
  v_take int;
  v_more boolean;
  v_entry record;
  v_cut_id bigint;
  v_candidates cursor for
    select q.publish_id, q.id, q.available_at, q.event_count, q.bytes, q.generation, q.attempt, q.deferrals, q.isolated,
        q.retention_class, q.ordinals
      from broker.queue q
     where q.topic_id = p_topic_id and q.subscription_id = v_subscription_id and q.priority = 0
       and q.lease_expires_at is null and q.lane_seq is null
       and q.available_at >= v_mark and q.available_at <= v_now
     order by q.available_at, q.id
       for update skip locked;
begin
  if p_leased_by is not null and not exists (
    select from broker.worker w where w.instance = p_leased_by and w.gone_at is null
  ) then
    raise exception 'the worker % is gone', p_leased_by using errcode = 'BR002';
  end if;
  for i in 1 .. cardinality(p_subscription_ids) loop
    v_subscription_id := p_subscription_ids[i];
    continue when not exists (
      select from broker.subscription s
       where s.id = v_subscription_id and s.topic_id = p_topic_id and s.state = 'active');
    v_mark := coalesce(p_marks[i], '-infinity');
    v_event_room := p_event_rooms[i];
    v_byte_room := p_byte_rooms[i];
    continue when coalesce(v_event_room, 0) < 1;
    v_publish_ids := '{}';
    v_entry_ids := '{}';
    v_more := false;
    v_cut_id := null;

    open v_candidates;
    loop
      fetch v_candidates into v_entry;
      exit when not found;
      v_more := cardinality(v_entry_ids) > 0 and (v_byte_room <= 0 or v_entry.isolated and p_leased_by is null);
      exit when v_more;
      v_take := least(v_entry.event_count, v_event_room,
        greatest(1, v_entry.event_count * greatest(v_byte_room, 0) / v_entry.bytes));
      v_publish_ids := v_publish_ids || v_entry.publish_id;
      v_entry_ids := v_entry_ids || v_entry.id;
      v_event_room := v_event_room - v_take;
      v_byte_room := v_byte_room - v_entry.bytes::bigint * v_take / v_entry.event_count;
      if v_take < v_entry.event_count then
        v_cut_id := v_entry.id;
      end if;
      v_more := v_take < v_entry.event_count or v_event_room = 0 or v_entry.isolated and p_leased_by is null;
      exit when v_more;
    end loop;
    close v_candidates;
    continue when v_entry_ids = '{}';

    return query
    with leased as (
      update broker.queue q
         set generation = q.generation + 1, attempt = q.attempt + 1,
             lease_expires_at = v_lease_expires_at, leased_by = p_leased_by,
             ordinals = case when q.id = v_cut_id then q.ordinals[1:v_take] else q.ordinals end,
             event_count = case when q.id = v_cut_id then v_take else q.event_count end,
             bytes = case when q.id = v_cut_id then greatest(1, q.bytes::bigint * v_take / q.event_count)::int else q.bytes end
       where q.topic_id = p_topic_id and q.subscription_id = v_subscription_id
         and q.publish_id = any (v_publish_ids) and q.id + 0 = any (v_entry_ids)
      returning q.publish_id, q.id, q.generation, q.attempt, q.isolated, q.retention_class, q.available_at, q.ordinals
    )
    select v_subscription_id, l.publish_id, l.id, l.generation, l.attempt, l.isolated, l.retention_class, l.available_at,
        v_lease_expires_at, v_more, (e.id & 1023)::smallint, coalesce(e.origin_id, e.id), e.published_at, e.ce_id, e.source, e.type,
        e.subject, e."time", e.datacontenttype, e.dataschema, e.ordering_key, e.extensions, e.traceparent, e.tracestate, e.data
      from leased l
      cross join lateral (
        select ev.* from broker.event ev
         where ev.topic_id = p_topic_id and ev.retention_class = l.retention_class
           and ev.id >= (l.publish_id << 10) + l.ordinals[1]
           and ev.id <= (l.publish_id << 10) + l.ordinals[cardinality(l.ordinals)]
           and (ev.id & 1023)::smallint = any (l.ordinals)
        offset 0
      ) e;

    if v_cut_id is not null then
      insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at,
        generation, attempt, deferrals, isolated, retention_class)
      values (p_topic_id, v_entry.publish_id, v_subscription_id, v_entry.ordinals[v_take + 1:], v_entry.event_count - v_take,
        greatest(1, v_entry.bytes - v_entry.bytes::bigint * v_take / v_entry.event_count)::int, v_entry.available_at,
        v_entry.generation, v_entry.attempt, v_entry.deferrals, v_entry.isolated, v_entry.retention_class);
    end if;
  end loop;
end $$;
