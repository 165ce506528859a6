// Goal: what a worker has leased and cannot begin is given back with its attempt, long before its lease runs out.
// Method: a worker's parts in the test's own process, with a shorter time, and endpoints that never answer.
import { expect, test } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { createWakeups } from '#db/wakeups.ts';
import { createEgressPolicy } from '#runtime/egress.ts';
import { createLogger } from '#runtime/logger.ts';
import { createMetrics } from '#runtime/metrics.ts';
import { Outage } from '#runtime/outage.ts';
import { createSealer } from '#runtime/sealer.ts';
import { aPushSubscription } from '#test/support/a-push-subscription.ts';
import { cloneDatabase, query } from '#test/support/database.ts';
import { eventually } from '#test/support/eventually.ts';
import { aTopic, publishMany } from '#test/support/factory.ts';
import { PushReceiver } from '#test/support/push-receiver.ts';
import { Dispatcher } from '../../apps/worker/dispatcher.ts';
import { EndpointClient } from '../../apps/worker/endpoint-client.ts';
import { PushDirectory } from '../../apps/worker/push-directory.ts';
import { Registration } from '../../apps/worker/registration.ts';
import { SettleBuffer } from '../../apps/worker/settle-buffer.ts';

test('what has not begun in time is given back with its attempt and left to others for a while, and what is in flight stays', async () => {
  await using database = await cloneDatabase();
  using receiver = await PushReceiver.start();
  const applicationName = 'broker-worker-test';
  await using handle = createDatabase({
    url: database.url,
    applicationName,
    poolMax: 4,
    statementTimeoutMs: 5000,
  });
  const { db } = handle;
  await using wakeups = createWakeups({ db, directUrl: database.url, applicationName });
  const logger = createLogger({ service: 'worker', instance: 'test', level: 'silent' });
  const metrics = createMetrics({ service: 'worker' });
  const outage = new Outage(logger);
  const onChange = (): void => undefined;
  const sealer = createSealer(undefined);
  using directory = new PushDirectory({ db, wakeups, logger, sealer, onChange });
  await using client = new EndpointClient({ policy: createEgressPolicy(['127.0.0.0/8']) });
  const settles = new SettleBuffer({
    db,
    wakeups,
    metrics,
    logger,
    outage,
    callsMax: 2,
    onSettled: (id, claim, events) => dispatcher.noteSettled(id, claim, events),
  });
  const info = { instance: 'test', service: 'worker', version: '0', host: 'h', pid: 1 };
  const registration = new Registration({
    directUrl: database.url,
    applicationName,
    info,
    logger,
    outage,
    onChange: () => dispatcher.schedule(),
  });
  const dispatcher: Dispatcher = new Dispatcher({
    db,
    directory,
    client,
    settles,
    metrics,
    logger,
    outage,
    registration,
    statementTimeoutMs: 5000,
    slots: 4,
    bytesMax: 1 << 20,
    beginWithinMs: 300,
  });

  const hook = receiver.endpoint('/hangs', { behaviour: 'hang' });
  const topicId = await aTopic(db, { name: 'orders' });
  const endpoint = { topic: 'orders', endpoint: hook.url, timeout_ms: 60_000 };
  const { id } = await aPushSubscription(db, endpoint);
  await publishMany(db, topicId, 6);
  await eventually(() => expect(registration.current).toBeDefined());
  dispatcher.wake(id);
  await hook.arrived(3);
  const rows = () =>
    query<{ is_leased: boolean; attempt: number; events: number }>(
      database.url,
      `select lease_expires_at is not null as is_leased, attempt, sum(event_count)::int as events
         from broker.queue where subscription_id = ${id} group by 1, 2 order by 1`,
    );
  // three quarters of four slots are in flight, the others are claimed ahead
  await eventually(async () =>
    expect(await rows()).toEqual([{ is_leased: true, attempt: 1, events: 6 }]),
  );
  const parted = [
    { is_leased: false, attempt: 0, events: 3 },
    { is_leased: true, attempt: 1, events: 3 },
  ];
  await eventually(async () => {
    dispatcher.tick();
    expect(await rows()).toEqual(parted);
  });

  // and left to other workers, while this one claims and delivers something else
  const other = receiver.endpoint('/good');
  const otherTopicId = await aTopic(db, { name: 'others' });
  const good = await aPushSubscription(db, { topic: 'others', endpoint: other.url });
  await publishMany(db, otherTopicId, 1);
  dispatcher.wake(id);
  dispatcher.tick();
  dispatcher.wake(good.id);
  await other.arrived(1);
  expect(await rows()).toEqual(parted);
  const claims = async () => {
    const counted = `select sum(generation)::int as claims from broker.queue where subscription_id = ${id}`;
    return (await query<{ claims: number }>(database.url, counted))[0]?.claims ?? 0;
  };
  const claimsBefore = await claims();
  await eventually(
    async () => {
      dispatcher.tick();
      expect(await claims()).toBeGreaterThan(claimsBefore);
    },
    { timeoutMs: 30_000 },
  );
  expect(hook.requests).toHaveLength(3);

  await dispatcher.stop();
  await dispatcher.drain(AbortSignal.abort());
  await settles.drain(AbortSignal.timeout(5000));
  expect(settles.lost).toBe(0);
  await registration.close({ holdsLeases: false });
  const leased = await query(
    database.url,
    `select from broker.queue where lease_expires_at is not null`,
  );
  expect(leased).toEqual([]);
});
