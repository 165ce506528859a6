-- What operators call to stop and to start a subscription; the API calls the same. The change is told to every process
-- with the commit; a resume also wakes claimers, from the head: what became due meanwhile lies behind their low-water marks.

create or replace function broker.pause(p_subscription text) returns broker.subscription_state
language plpgsql as $$
declare
  v_subscription record;
begin
  v_subscription := broker.lock_subscription(p_subscription);
  if v_subscription.state <> 'active' then
    return v_subscription.state;
  end if;
  update broker.subscription s set state = 'paused', updated_at = clock_timestamp() where s.id = v_subscription.id;
  perform pg_notify('broker_changed', 'subscription ' || p_subscription);
  return 'paused';
end $$;
comment on function broker.pause(text) is
  'Stops handing out events of a subscription; they go on to arrive and wait, and what is leased may still be settled. Returns the new state; one that is disabled stays so.';

create or replace function broker.resume(p_subscription text) returns broker.subscription_state
language plpgsql as $$
declare
  v_subscription record;
begin
  v_subscription := broker.lock_subscription(p_subscription);
  if v_subscription.state in ('paused', 'disabled') then
    update broker.subscription s
       set state = 'active', disabled_reason = null, updated_at = clock_timestamp()
     where s.id = v_subscription.id;
    perform pg_notify('broker_changed', 'subscription ' || p_subscription);
    perform pg_notify('broker_wake', json_build_object('topic', v_subscription.topic_id,
      'subscriptions', array[v_subscription.id], 'mark', '-infinity')::text);
  end if;
  return 'active';
end $$;
comment on function broker.resume(text) is
  'Hands out events of a subscription again that was paused, or disabled because its endpoint said that it is gone. Returns the new state.';

-- The subscription of a name, locked until the end of the transaction.
create or replace function broker.lock_subscription(p_subscription text) returns broker.subscription
language plpgsql as $$
declare
  v_subscription broker.subscription;
begin
  select s.* into v_subscription
    from broker.subscription s where s.name = p_subscription and s.state <> 'deleted' for no key update;
  if not found then
    raise exception 'there is no subscription %', p_subscription
      using errcode = 'BR003', hint = 'select topic, subscription from broker.backlog shows all that there are.';
  end if;
  return v_subscription;
end $$;
