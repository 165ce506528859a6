-- What everybody may: nothing. PostgreSQL lets everybody call a new function unless it is told otherwise, and only a default
-- of the role that makes it can tell (one of the schema could not take it away again).
alter default privileges revoke execute on functions from public;
revoke execute on all functions in schema broker from public;
revoke all on all tables in schema broker from public;
revoke all on all sequences in schema broker from public;
revoke all on schema broker from public;
