import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { type BrokerAddress, Client } from './client.ts';
import {
  consume,
  type ConsumerOptions,
  failingKinds,
  hangUp,
  hungUpMax,
  workingKinds,
} from './consumers.ts';
import { type Findings, findingsOf } from './findings.ts';
import { Ledger } from './ledger.ts';
import { commonestType, loadPayloads, type Payload } from './payloads.ts';
import { eventsOf, publishAll } from './producers.ts';
import { type Progress, startProgress } from './progress.ts';
import { PushEndpoint } from './push-endpoint.ts';
import {
  attemptsMax,
  cleanUp,
  pushTimeoutMs,
  setUp,
  type Stage,
  visibilityTimeoutSeconds,
} from './stage.ts';
import { listAttempts, listDeadLetters } from './subscription-client.ts';
import { isRepeated } from './push-findings.ts';

export interface RunOptions {
  readonly broker: BrokerAddress;
  /** Not all payloads, but this many. */
  readonly payloadsMax?: number | undefined;
  readonly signal: AbortSignal;
  readonly say: (line: string) => void;
}

/** Without any event finished for so long, what is not finished is lost. */
const patienceMs = 10_000;
const lookMs = 100;
const deadLettersEveryMs = 1000;
/** After the last publish; a subscription may have too few events for all that want to fail. */
const beginMs = 3000;
const cleanUpMs = 10_000;

interface Run {
  readonly client: Client;
  readonly ledger: Ledger;
  readonly stage: Stage;
  /** Of any type. */
  readonly subscriptions: readonly string[];
  /** Ends the consumers, after what they have in hand. */
  readonly stopping: AbortController;
  readonly say: (line: string) => void;
}

/** The whole demo on a broker: publish, consume, fail, redrive, clean up; returns what became of everything. */
export async function runDemo(options: RunOptions): Promise<Findings> {
  const { signal, say, broker } = options;
  const payloads = choosePayloads(options.payloadsMax);
  const type = commonestType(payloads);
  const topic = `demo-${randomBytes(4).toString('hex')}`;
  const ended = new AbortController();
  const stopping = new AbortController();
  const client = new Client(broker, AbortSignal.any([signal, ended.signal]));
  await using endpoint = await PushEndpoint.start();
  say(`${payloads.length} payloads, each published twice to the topic ${topic}`);
  try {
    const stage = await setUp({ client, topic, type, endpoint: endpoint.url, say });
    const ledger = new Ledger(stage.filters);
    say(`pull: ${topic}-all gets everything, ${topic}-some only ${type}`);
    if (stage.pushed !== undefined) {
      say(`push: ${stage.pushed.subscription} gets everything, at ${endpoint.url}`);
      endpoint.begin({ ...stage.pushed, ledger });
    }
    const subscriptions = [...stage.filters.keys()];
    const run = { client, ledger, stage, subscriptions, stopping, say };
    await work(run, payloads);
    await askForTimeouts(run);
    return findingsOf(ledger, {
      attemptsMax,
      visibilityTimeoutMs: visibilityTimeoutSeconds * 1000,
      unseenMax: hungUpMax,
      pushed: stage.pushed?.subscription,
    });
  } finally {
    stopping.abort();
    ended.abort();
    await cleanUp(new Client(broker, AbortSignal.timeout(cleanUpMs)), topic);
  }
}

/** Those of the commonest type first, so that the filter has something to find in a few as well. */
function choosePayloads(max: number | undefined): Payload[] {
  const all = loadPayloads();
  const type = commonestType(all);
  const { yes = [], no = [] } = Object.groupBy(all, (each) => (each.type === type ? 'yes' : 'no'));
  return [...yes, ...no].slice(0, max);
}

/** Publishes while consumers work and fail, until everything is done or dead; then the same with what had died. */
async function work(run: Run, payloads: readonly Payload[]): Promise<void> {
  const { client, ledger, stage, subscriptions, stopping, say } = run;
  const events = eventsOf(payloads);
  ledger.plan([...events.singles, ...events.batched]);
  const publishing = publishAll({ client, ledger, topic: stage.topic }, events);
  const consuming = stage.pulled.map((subscription) => consumeAll(run, subscription, publishing));
  const flow = async (): Promise<void> => {
    const progress = startProgress('delivered');
    await untilFinished(run, { progress, from: 0, to: ledger.planned });
    await publishing;
    for (const subscription of subscriptions) await lookForDeadLetters(run, subscription);
    const dead = ledger.beginRedrive();
    say(`${dead} dead letters, which are redriven now`);
    const from = ledger.finished;
    for (const subscription of subscriptions) await redrive(run, subscription);
    const redriveProgress = startProgress('redriven');
    await untilFinished(run, { progress: redriveProgress, from, to: from + dead });
    await expectNothingLeft(run);
    stopping.abort();
  };
  await Promise.all([flow(), publishing, ...consuming]);
}

/** Those that fail come first: the others would leave them nothing. */
async function consumeAll(
  { client, ledger, stopping }: Run,
  subscription: string,
  publishing: Promise<void>,
): Promise<void> {
  const { signal } = stopping;
  const options: ConsumerOptions = { client, ledger, subscription, attemptsMax, signal };
  const running: Promise<void>[] = [hangUp(options)];
  const begun = failingKinds.map((kind) => {
    const { promise, resolve } = Promise.withResolvers<void>();
    running.push(consume(options, kind, resolve));
    return promise;
  });
  const enough = publishing.then(() => delay(beginMs, undefined, { signal }));
  const working = async (): Promise<void> => {
    await Promise.race([Promise.all(begun), enough]);
    await Promise.all(workingKinds.map((kind) => consume(options, kind)));
  };
  // the one that loses the race may end with the run
  enough.catch(() => undefined);
  await Promise.all([...running, working()]);
}

/** Waits until everything is done or dead, or nothing has moved for a long time. */
async function untilFinished(
  run: Run,
  {
    progress,
    from,
    to,
  }: { readonly progress: Progress; readonly from: number; readonly to: number },
): Promise<void> {
  const { ledger, subscriptions, stopping } = run;
  let finished = ledger.finished;
  let movedAt = performance.now();
  let lookedAt = movedAt;
  try {
    while (ledger.finished < to) {
      await delay(lookMs, undefined, { signal: stopping.signal });
      progress.update(ledger.finished - from, to - from);
      const now = performance.now();
      if (ledger.finished !== finished) movedAt = now;
      else if (now - movedAt > patienceMs) break;
      finished = ledger.finished;
      // what died of leases that ran out is found there only
      if (ledger.isRedriving || now - lookedAt < deadLettersEveryMs) continue;
      lookedAt = now;
      for (const subscription of subscriptions) await lookForDeadLetters(run, subscription);
    }
    progress.update(ledger.finished - from, to - from);
  } finally {
    progress.stop();
  }
}

async function lookForDeadLetters({ client, ledger }: Run, subscription: string): Promise<void> {
  const letters = await listDeadLetters(client, subscription);
  for (const letter of letters) ledger.died(subscription, letter);
}

async function redrive({ client }: Run, subscription: string): Promise<void> {
  await client.call('POST', `/subscriptions/${subscription}/dlq/redrive`, { body: '{}' });
}

/** Where a push came again although it was answered: whether that was after the time that the broker waits. */
async function askForTimeouts({ client, ledger, stage }: Run): Promise<void> {
  const { topic, pushed } = stage;
  if (pushed === undefined) return;
  for (const way of ledger.ways.filter(isRepeated)) {
    const eventId = ledger.eventId(way.event);
    if (eventId === undefined) continue;
    const attempts = await listAttempts(client, pushed.subscription, { topic, eventId });
    const late = attempts.filter(
      ({ status, duration_ms: ms }) => status === null && ms !== null && ms >= pushTimeoutMs * 0.9,
    );
    way.timedOut = new Set(late.map(({ attempt }) => attempt));
  }
}

async function expectNothingLeft({ client, ledger, subscriptions }: Run): Promise<void> {
  for (const subscription of subscriptions) {
    for (const { event } of await listDeadLetters(client, subscription)) {
      ledger.faults.push(`${subscription} still has the dead letter ${event.id}`);
    }
  }
}
