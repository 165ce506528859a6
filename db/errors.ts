import pg from 'pg';

/**
 * What went wrong between us and PostgreSQL, as far as a caller has to act on it.
 * - `unavailable`: the statement was never sent, or the server refused it before it began: nothing happened.
 * - `outcome_unknown`: the connection went while the statement ran: it may have been committed.
 * - `lock_timeout`, `statement_timeout`: given up and rolled back.
 * - `term_over`: a duty showed the term of a leader that is not leading any more.
 * - `worker_gone`: a claim named a worker whose leases are being taken over.
 * - `no_subscription`, `job_unfinished`: what an operator's function says of its arguments.
 * - `missing_partition`: an event fell into a span that has no partition yet.
 * - `conflict`: a unique or foreign key, a serialization failure or a deadlock.
 * - `defect`: everything else; a fault of ours.
 */
export type DatabaseFault =
  | 'unavailable'
  | 'outcome_unknown'
  | 'lock_timeout'
  | 'statement_timeout'
  | 'term_over'
  | 'worker_gone'
  | 'no_subscription'
  | 'job_unfinished'
  | 'missing_partition'
  | 'conflict'
  | 'defect';

/** The connection could not be had, so nothing was sent. */
export class DatabaseUnavailable extends Error {
  override name = 'DatabaseUnavailable';
}

/** The connection broke, or fell silent, while a statement was under way. */
export class OutcomeUnknown extends Error {
  override name = 'OutcomeUnknown';
}

const faultsBySqlState: Readonly<Record<string, DatabaseFault>> = {
  '55P03': 'lock_timeout',
  '57014': 'statement_timeout',
  BR001: 'term_over',
  BR002: 'worker_gone',
  BR003: 'no_subscription',
  BR004: 'job_unfinished',
  '23514': 'missing_partition',
  '23505': 'conflict',
  '23503': 'conflict',
  '40001': 'conflict',
  '40P01': 'conflict',
  // disk full, out of memory, too many connections
  '53100': 'unavailable',
  '53200': 'unavailable',
  '53300': 'unavailable',
  '57P03': 'unavailable',
  '25006': 'unavailable',
};

/** Sorts an error of a db verb. SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html */
export function faultOf(error: unknown): DatabaseFault {
  if (error instanceof DatabaseUnavailable) return 'unavailable';
  if (error instanceof OutcomeUnknown) return 'outcome_unknown';
  if (!(error instanceof pg.DatabaseError)) return 'defect';
  const code = error.code ?? '';
  if (code.startsWith('57P') || code.startsWith('08')) {
    return code === '57P03' ? 'unavailable' : 'outcome_unknown';
  }
  if (code === '23514' && !error.message.includes('no partition')) return 'defect';
  return faultsBySqlState[code] ?? 'defect';
}

const lasting: readonly DatabaseFault[] = [
  'defect',
  'term_over',
  'worker_gone',
  'no_subscription',
  'job_unfinished',
];

/** Whether the same call may succeed a little later without anybody changing anything. */
export function isTransient(error: unknown): boolean {
  const fault = faultOf(error);
  return !lasting.includes(fault);
}

/** Whether the connection that an error came over can be used no more. */
export function breaksConnection(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError)) return true;
  return (error.code ?? '').startsWith('57P') || (error.code ?? '').startsWith('08');
}

/** What kind of error it was, for who counts them: classes of SQLSTATE in words, and the two time-outs by themselves. */
export type DatabaseErrorClass =
  | 'connection'
  | 'authorization'
  | 'data'
  | 'constraint'
  | 'transaction_state'
  | 'rollback'
  | 'syntax_or_access'
  | 'resources'
  | 'program_limit'
  | 'lock_timeout'
  | 'object_state'
  | 'statement_timeout'
  | 'shutdown'
  | 'system'
  | 'internal'
  | 'broker'
  | 'other';

const classes: Readonly<Record<string, DatabaseErrorClass>> = {
  '08': 'connection',
  '21': 'data',
  '22': 'data',
  '23': 'constraint',
  '25': 'transaction_state',
  '28': 'authorization',
  '40': 'rollback',
  '42': 'syntax_or_access',
  '53': 'resources',
  '54': 'program_limit',
  '55': 'object_state',
  '57': 'shutdown',
  '58': 'system',
  BR: 'broker',
  F0: 'system',
  XX: 'internal',
};

/** What is no answer of PostgreSQL is a fault of the connection. */
export function errorClassOf(error: unknown): DatabaseErrorClass {
  if (!(error instanceof pg.DatabaseError)) return 'connection';
  const code = error.code ?? '';
  if (code === '55P03') return 'lock_timeout';
  if (code === '57014') return 'statement_timeout';
  return classes[code.slice(0, 2)] ?? 'other';
}
