// Goal: a worker hears of everything that is due, and a wake-up costs it no more than it says.
import { sql, type KyselyPlugin } from 'kysely';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { createDatabase, type Database } from '#db/client.ts';
import { createWakeups, type Wakeups } from '#db/wakeups.ts';
import { Outage } from '#runtime/outage.ts';
import { DueWatch } from '../../apps/worker/due-watch.ts';
import { eventually } from '../support/eventually.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import { startTcpProxy } from '../support/tcp-proxy.ts';
import { untilListening } from '../support/until-listening.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
let db: Database;
let wakeups: Wakeups;
beforeEach(async () => {
  database = await openVerbDatabase();
  db = database.db;
  wakeups = createWakeups({ db, directUrl: database.url, applicationName: 'wakeups' });
  await untilListening(wakeups);
});
afterEach(async () => {
  await wakeups.close();
  await database[Symbol.asyncDispose]();
});

interface Watched extends AsyncDisposable {
  readonly heard: { id: number; mark: string | undefined }[];
  /** Those of one subscription, since `heard` was emptied. */
  of(id: number): (string | undefined)[];
  readonly outage: Outage;
  readonly logged: { readonly outage: string[]; readonly errors: string[] };
}

/** A watch that looks by itself once, and then only when it is woken. */
function watch(on: Database = db): Watched {
  const heard: Watched['heard'] = [];
  const logged: Watched['logged'] = { outage: [], errors: [] };
  const note = (_: unknown, line?: string): void => void logged.outage.push(line ?? '');
  const outage = new Outage({ warn: note, info: note });
  const running = new DueWatch({
    db: on,
    wakeups,
    outage,
    logger: { error: (_: unknown, line?: string) => void logged.errors.push(line ?? '') },
    onDue: (id, mark) => void heard.push({ id, mark }),
    lookBackMs: 10_000,
    pollMs: { listening: 600_000, deaf: 600_000 },
  });
  return {
    heard,
    of: (id) => heard.filter((each) => each.id === id).map(({ mark }) => mark),
    outage,
    logged,
    [Symbol.asyncDispose]: async () => running.stop(),
  };
}

/** Wake-ups as another process sends them, in this order. */
async function notify(...payloads: object[]): Promise<void> {
  const texts = payloads.map((payload) => JSON.stringify(payload));
  await sql`select pg_notify('broker_wake', p) from unnest(${texts}::text[]) p`.execute(db);
}

async function aTopicWithOneDue() {
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, 1);
  return { topic, subscription };
}

/** A database that counts the statements that are sent over it. */
function counting(on: Database): { readonly db: Database; sent(): number } {
  let sent = 0;
  const count: KyselyPlugin = {
    transformQuery({ node }) {
      sent += 1;
      return node;
    },
    transformResult: async ({ result }) => result,
  };
  return { db: on.withPlugin(count), sent: () => sent };
}

test('at the beginning it looks from the head of all topics', async () => {
  const [one, two] = [await aTopicWithOneDue(), await aTopicWithOneDue()];
  await sql`update broker.queue set available_at = '2025-06-01T10:00:00.25Z'`.execute(db);
  await using watching = watch();
  await eventually(() =>
    expect(watching.heard).toEqual([
      { id: one.subscription, mark: '2025-06-01T10:00:00.25Z' },
      { id: two.subscription, mark: '2025-06-01T10:00:00.25Z' },
    ]),
  );
});

test('a wake-up without names is looked after in its topic alone, from the last look on', async () => {
  const [one, two] = [await aTopicWithOneDue(), await aTopicWithOneDue()];
  const old = await aSubscription(db, one.topic);
  await publishMany(db, one.topic, 1);
  await sql`update broker.queue set available_at = '2025-06-01T10:00:00Z' where subscription_id = ${old}`.execute(
    db,
  );
  await using watching = watch();
  await eventually(() => expect(watching.of(two.subscription)).toHaveLength(1));
  watching.heard.length = 0;
  await notify({ topic: one.topic });
  await eventually(() => expect(watching.heard).not.toEqual([]));
  expect(watching.heard).toEqual([{ id: one.subscription, mark: undefined }]);

  // one that says since when is looked after from there
  watching.heard.length = 0;
  await notify({ topic: one.topic, mark: '2025-05-01T00:00:00Z' });
  await eventually(() => expect(watching.of(old)).toEqual(['2025-06-01T10:00:00Z']));
  expect(watching.of(two.subscription)).toEqual([]);
});

test('many wake-ups without names are few looks, and none of them is forgotten', async () => {
  const { topic, subscription } = await aTopicWithOneDue();
  const late = await aSubscription(db, topic);
  await using watching = watch();
  await eventually(() => expect(watching.of(subscription)).toHaveLength(1));
  watching.heard.length = 0;
  const began = performance.now();
  for (let n = 0; n < 200; n += 1) await notify({ topic });
  await publishMany(db, topic, 1);
  await notify({ topic });
  await eventually(() => expect(watching.of(late)).not.toEqual([]));
  const looks = watching.of(subscription).length;
  expect(looks).toBeLessThanOrEqual(Math.ceil((performance.now() - began) / 100) + 1);
});

test('a defect is logged once and is no outage; the look is repeated until it works', async () => {
  const { topic, subscription } = await aTopicWithOneDue();
  await sql`alter function broker.due(int, timestamptz) rename to away`.execute(db);
  const counted = counting(db);
  await using watching = watch(counted.db);
  // a round is two statements
  await eventually(() => expect(counted.sent()).toBeGreaterThan(5));
  await sql`alter function broker.away(int, timestamptz) rename to due`.execute(db);
  await eventually(() => expect(watching.of(subscription)).toHaveLength(1));
  expect(watching.logged).toEqual({ outage: [], errors: ['a look for what is due failed'] });

  // also that for one topic
  await sql`alter function broker.due(int, timestamptz) rename to away`.execute(db);
  await notify({ topic });
  await eventually(() => expect(watching.logged.errors).toHaveLength(2));
  await sql`alter function broker.away(int, timestamptz) rename to due`.execute(db);
  await eventually(() => expect(watching.of(subscription)).toHaveLength(2));
  expect(watching.logged.outage).toEqual([]);
});

test('a database that is away is an outage, until a look works again', async () => {
  const { subscription } = await aTopicWithOneDue();
  await using proxy = await startTcpProxy({ port: Number(new URL(database.url).port) });
  await using handle = createDatabase({
    url: proxy.through(database.url),
    applicationName: 'watch',
    poolMax: 1,
    statementTimeoutMs: 2000,
  });
  proxy.refuse();
  await using watching = watch(handle.db);
  await eventually(() => expect(watching.outage.isOver).toBe(false));
  proxy.restore();
  await eventually(() => expect(watching.of(subscription)).toHaveLength(1));
  await eventually(() => expect(watching.outage.isOver).toBe(true));
  expect(watching.logged.errors).toEqual([]);
});
