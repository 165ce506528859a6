-- Part of settle and reap: makes dead letters, with a copy of each event, so that they outlive its partition.
create or replace function broker.bury(p_topic_id int, p_now timestamptz, p_dying broker.dying_event[]) returns void
language plpgsql as $$
begin
  insert into broker.dead_letter (event_id, origin_id, died_at, published_at, topic_id, subscription_id, attempts, reason,
    last_error, last_status, type, ce_id, source, subject, "time", datacontenttype, dataschema, ordering_key, extensions, traceparent,
    tracestate, data, data_binary)
  select e.id, e.origin_id, p_now, e.published_at, p_topic_id, d.subscription_id, d.attempts, d.reason, d.error, d.status, e.type,
      e.ce_id, e.source, e.subject, e."time", e.datacontenttype, e.dataschema, e.ordering_key, e.extensions, e.traceparent,
      e.tracestate, e.data, e.data_binary
    from unnest(p_dying) d
    cross join lateral (
      select ev.* from broker.event ev
       where ev.topic_id = p_topic_id and ev.retention_class = d.retention_class and ev.id = d.event_id
      offset 0
    ) e;
end $$;
