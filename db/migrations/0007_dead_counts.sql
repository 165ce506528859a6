-- What reap and take_over return becomes more (functions/): a function must go to return other columns. They are made again
-- right after the migrations; a duty of the release before that runs in between fails once and is tried again.
set local lock_timeout = '5s';

drop function if exists broker.reap(int, bigint, int, timestamptz);
drop function if exists broker.take_over(int, bigint, text, int);
drop function if exists broker.return_leases(int, timestamptz, broker.expired_lease[], text);
