import { afterAll, beforeAll, expect, test } from 'vitest';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
  await api.call('PUT /api/v1/topics/orders', {});
  await api.call('PUT /api/v1/subscriptions/billing', { topic: 'orders', type: 'pull' });
});
afterAll(() => api[Symbol.asyncDispose]());

test('a redrive of nothing has succeeded at once', async () => {
  const made = await api.call('POST /api/v1/subscriptions/billing/dlq/redrive', {});
  expect(made.status).toBe(202);
  const job = await api.call(`GET /api/v1/jobs/${made.json.job_id}`);
  expect(job.json).toMatchObject({
    state: 'succeeded',
    total: 0,
    done: 0,
    progress: 1,
    rate_per_second: null,
    error: null,
  });
  expect(job.json.finished_at).not.toBeNull();
});

test('the job of a subscription that was deleted since is still there', async () => {
  await api.call('PUT /api/v1/subscriptions/brief', { topic: 'orders', type: 'pull' });
  const made = await api.call('POST /api/v1/subscriptions/brief/dlq/redrive', {});
  await api.call('DELETE /api/v1/subscriptions/brief');
  expect(await api.call(`GET /api/v1/jobs/${made.json.job_id}`)).toMatchObject({
    status: 200,
    json: { subscription: 'brief' },
  });
});

test.each(['0', '999999', '9223372036854775807', '9999999999999999999'])(
  'there is no job %s',
  async (id) => {
    expect(await api.call(`GET /api/v1/jobs/${id}`)).toMatchObject({
      status: 404,
      json: { code: 'job_not_found' },
    });
  },
);

test('an id is digits', async () => {
  expect(await api.call('GET /api/v1/jobs/one')).toMatchObject({
    status: 422,
    json: { code: 'invalid_request', errors: [{ parameter: 'id' }] },
  });
});
