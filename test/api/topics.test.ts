import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type OwnTestApp, startOwnApp } from '../support/app.ts';
import { query } from '../support/database.ts';

let api: OwnTestApp;
beforeAll(async () => {
  api = await startOwnApp();
});
afterAll(() => api[Symbol.asyncDispose]());

const defaults = {
  retention_seconds: 604_800,
  deduplication_seconds: 86_400,
  deduplicate_event_ids: true,
  max_backlog: 100_000,
};

describe('PUT /topics/{topic}', () => {
  test('creates with defaults, then replaces: what is not given goes back to its default', async () => {
    const created = await api.call('PUT /api/v1/topics/orders', {
      retention_seconds: 3600,
      max_backlog: 7,
    });
    expect(created.status).toBe(201);
    expect(created.json).toMatchObject({
      ...defaults,
      name: 'orders',
      retention_seconds: 3600,
      max_backlog: 7,
    });
    const replaced = await api.call('PUT /api/v1/topics/orders', { deduplication_seconds: 60 });
    expect(replaced.status).toBe(200);
    expect(replaced.json).toMatchObject({ ...defaults, deduplication_seconds: 60 });
    expect(replaced.json.created_at).toBe(created.json.created_at);
    const read = await api.call('GET /api/v1/topics/orders');
    expect(read).toMatchObject({ status: 200, json: replaced.json });
  });

  test('needs no body', async () => {
    const answer = await api.call('PUT /api/v1/topics/plain');
    expect(answer).toMatchObject({ status: 201, json: defaults });
  });

  test('has its partitions before it is answered', async () => {
    await api.call('PUT /api/v1/topics/yearly', { retention_seconds: 31_536_000 });
    const rows = await query(
      api.url,
      'select from broker.partition where retention_class = 8760 and attached',
    );
    expect(rows).toHaveLength(3);
  });

  test('twice at once: one creates, the other replaces', async () => {
    for (let round = 0; round < 5; round += 1) {
      const answers = await Promise.all(
        [1, 2, 3].map((n) => api.call(`PUT /api/v1/topics/race-${round}`, { max_backlog: n })),
      );
      expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([
        200, 200, 201,
      ]);
    }
  });

  test.each([
    [{ retention_seconds: 59 }, '/retention_seconds'],
    [{ retention_seconds: 31_536_001 }, '/retention_seconds'],
    [{ retention_seconds: '3600' }, '/retention_seconds'],
    [{ retention_seconds: 3600.5 }, '/retention_seconds'],
    [{ deduplication_seconds: -1 }, '/deduplication_seconds'],
    [{ deduplicate_event_ids: 1 }, '/deduplicate_event_ids'],
    [{ max_backlog: 0 }, '/max_backlog'],
    [{ max_backlog: null }, '/max_backlog'],
    [{ max_backlogs: 5 }, '/max_backlogs'],
    [{ 'a/b~c': 5 }, '/a~1b~0c'],
    [{ constructor: 5 }, '/constructor'],
    [[], ''],
    ['"text"', ''],
    ['null', ''],
  ])('refuses %j', async (body, pointer) => {
    const answer = await api.call('PUT /api/v1/topics/bad', body);
    expect(answer.status).toBe(422);
    expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
    expect(answer.json).toMatchObject({ code: 'invalid_request', errors: [{ pointer }] });
  });

  test.each(['-a', 'a%20b', 'a%00b', 'ä', 'a'.repeat(129), 'a*'])(
    'refuses the name %s',
    async (name) => {
      const answer = await api.call(`PUT /api/v1/topics/${encodeURI(name)}`, {});
      expect(answer).toMatchObject({
        status: 422,
        json: { code: 'invalid_request', errors: [{ parameter: 'topic' }] },
      });
    },
  );
});

describe('DELETE /topics/{topic}', () => {
  test('frees the name at once, and another topic of that name is another topic', async () => {
    await api.call('PUT /api/v1/topics/gone', {});
    const first = await api.deps.directory.topic('gone');
    expect(await api.call('DELETE /api/v1/topics/gone')).toMatchObject({ status: 204, text: '' });
    for (const route of ['GET /api/v1/topics/gone', 'DELETE /api/v1/topics/gone']) {
      expect(await api.call(route)).toMatchObject({
        status: 404,
        json: { code: 'topic_not_found' },
      });
    }
    expect(await api.call('PUT /api/v1/topics/gone', {})).toMatchObject({ status: 201 });
    expect((await api.deps.directory.topic('gone'))?.id).not.toBe(first?.id);
  });

  test('is refused while there are subscriptions', async () => {
    await api.call('PUT /api/v1/topics/busy', {});
    await api.call('PUT /api/v1/subscriptions/busy-1', { topic: 'busy', type: 'pull' });
    expect(await api.call('DELETE /api/v1/topics/busy')).toMatchObject({
      status: 409,
      json: { code: 'topic_has_subscriptions' },
    });
    await api.call('DELETE /api/v1/subscriptions/busy-1');
    expect(await api.call('DELETE /api/v1/topics/busy')).toMatchObject({ status: 204 });
  });

  test('at once with the creation of a subscription: no orphan, no failure', async () => {
    for (let round = 0; round < 20; round += 1) {
      await api.call('PUT /api/v1/topics/contested', {});
      const name = `contested-${round}`;
      const [deleted, made] = await Promise.all([
        api.call('DELETE /api/v1/topics/contested'),
        api.call(`PUT /api/v1/subscriptions/${name}`, { topic: 'contested', type: 'pull' }),
      ]);
      expect([`${deleted.status} ${made.status}`]).toEqual(
        deleted.status === 204 ? ['204 404'] : ['409 201'],
      );
      await api.call(`DELETE /api/v1/subscriptions/${name}`);
    }
    const orphans = await query(
      api.url,
      `select from broker.subscription s join broker.topic t on t.id = s.topic_id
        where s.state <> 'deleted' and t.state = 'deleted'`,
    );
    expect(orphans).toHaveLength(0);
  });
});

test('GET /topics pages by name, and ends', async () => {
  const names = Array.from({ length: 7 }, (_, n) => `page-${n}`);
  for (const name of names) await api.call(`PUT /api/v1/topics/${name}`, {});
  const seen: string[] = [];
  let cursor: string | null = null;
  do {
    const query = cursor === null ? 'limit=3' : `limit=3&cursor=${cursor}`;
    const page = await api.call(`GET /api/v1/topics?${query}`);
    expect(page.status).toBe(200);
    expect(page.json.items.length).toBeLessThanOrEqual(3);
    seen.push(...page.json.items.map((item: { name: string }) => item.name));
    cursor = page.json.next_cursor;
  } while (cursor !== null);
  expect(seen).toEqual(seen.toSorted());
  expect(new Set(seen).size).toBe(seen.length);
  expect(seen).toEqual(expect.arrayContaining(names));
});

test.each([
  ['limit=0', 'invalid_request', 'limit'],
  ['limit=251', 'invalid_request', 'limit'],
  ['limit=ten', 'invalid_request', 'limit'],
  ['limits=1', 'invalid_request', 'limits'],
  ['cursor=', 'invalid_request', 'cursor'],
  ['cursor=%00', 'invalid_cursor', 'cursor'],
  ['cursor=AAAA', 'invalid_cursor', 'cursor'],
  [`cursor=${Buffer.from("t:x' or true --").toString('base64url')}`, 'invalid_cursor', 'cursor'],
  [`cursor=${Buffer.from('s:orders').toString('base64url')}`, 'invalid_cursor', 'cursor'],
])('GET /topics?%s is refused', async (search, code, parameter) => {
  const answer = await api.call(`GET /api/v1/topics?${search}`);
  expect(answer).toMatchObject({ status: 422, json: { code, errors: [{ parameter }] } });
});
