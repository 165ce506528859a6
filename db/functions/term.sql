-- Fences every duty: it holds the leader's row FOR KEY SHARE while it runs, so a new leader's term, which is a key, waits
-- for it, and one that shows an older term is refused. The row must be locked: a mere look would let a running old statement
-- write after the new term began. FOR SHARE would also stop the leader's own heartbeat for as long as a duty runs, and after
-- 3 s its followers would take it for dead.
create or replace function broker.assert_term(p_term bigint) returns void
language plpgsql as $$
begin
  perform from broker.leader l where l.term = p_term for key share;
  if not found then
    raise exception 'term % is over', p_term using errcode = 'BR001';
  end if;
end $$;
