import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { DatabaseUnavailable, OutcomeUnknown } from '#db/errors.ts';
import { Problem, problemOf } from '../../apps/api/problems.ts';

function databaseError(code: string, message = 'a message'): pg.DatabaseError {
  return Object.assign(new pg.DatabaseError(message, 1, 'error'), { code });
}

describe('what a fault of the database is answered with', () => {
  test.each([
    ['no connection', new DatabaseUnavailable('x'), 'PUT', 'database_unavailable'],
    ['too many connections', databaseError('53300'), 'PUT', 'database_unavailable'],
    ['cut while changing', new OutcomeUnknown('x'), 'PUT', 'outcome_unknown'],
    ['shut down while changing', databaseError('57P01'), 'POST', 'outcome_unknown'],
    ['cut while reading', new OutcomeUnknown('x'), 'GET', 'database_unavailable'],
    ['lock timeout', databaseError('55P03'), 'PUT', 'database_busy'],
    ['statement timeout', databaseError('57014'), 'PUT', 'database_busy'],
    ['deadlock', databaseError('40P01'), 'PUT', 'database_busy'],
    ['syntax', databaseError('42601'), 'PUT', 'internal_error'],
    ['a check', databaseError('23514'), 'PUT', 'internal_error'],
    ['a defect of ours', new TypeError('x is not a function'), 'GET', 'internal_error'],
    ['something thrown', 'text', 'GET', 'internal_error'],
  ])('%s', (_name, error, method, code) => {
    const problem = problemOf(error, { method });
    expect(problem.code).toBe(code);
    expect('retry-after' in problem.headers).toBe(problem.status === 503);
  });

  test('a defect is answered without a word of it', () => {
    const problem = problemOf(new Error('select secret from somewhere'), { method: 'GET' });
    expect(problem.detail).toBeUndefined();
    expect(problem.message).not.toContain('secret');
  });
});

test('Retry-After is whole seconds, and at least one', () => {
  const after = (seconds: number) =>
    new Problem('rate_limited', undefined, { retryAfterSeconds: seconds }).headers['retry-after'];
  expect([after(0), after(0.2), after(1.2), after(60)]).toEqual(['1', '1', '2', '60']);
});
