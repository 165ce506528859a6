import { randomUUID } from 'node:crypto';
import type { Client } from './client.ts';
import type { Ledger, OwnEvent } from './ledger.ts';
import type { Payload } from './payloads.ts';

const source = '/github/webhooks';
const batchEvents = 25;
const singlesAtOnce = 8;
const batchesAtOnce = 2;
/** Every so many single publishes, and batches, are sent again. */
const repeatedSingles = 10;
const repeatedBatches = 4;
/** Every so many events are poison. */
const poisonEvery = 200;

/** Each payload twice: once as the package has it, line breaks and all, and once without white space. */
export function eventsOf(payloads: readonly Payload[]): {
  singles: OwnEvent[];
  batched: OwnEvent[];
} {
  const toEvent = (payload: Payload, index: number, dataText: string): OwnEvent => ({
    // as X-GitHub-Delivery has it
    id: randomUUID(),
    source,
    type: payload.type,
    subject: payload.subject,
    dataText,
    isPoison: index % poisonEvery === 5,
  });
  return {
    singles: payloads.map((payload, index) => toEvent(payload, index, payload.text)),
    batched: payloads.map((payload, index) =>
      toEvent(payload, index, JSON.stringify(JSON.parse(payload.text))),
    ),
  };
}

export interface PublishOptions {
  readonly client: Client;
  readonly ledger: Ledger;
  readonly topic: string;
}

/** Publishes everything, singly and in batches, some of it more than once. */
export async function publishAll(
  options: PublishOptions,
  { singles, batched }: { readonly singles: OwnEvent[]; readonly batched: OwnEvent[] },
): Promise<void> {
  const batches: OwnEvent[][] = [];
  for (let from = 0; from < batched.length; from += batchEvents) {
    batches.push(batched.slice(from, from + batchEvents));
  }
  await Promise.all([
    inParallel(singles, singlesAtOnce, async (event, index) => {
      await publishOne(options, event, index);
    }),
    inParallel(batches, batchesAtOnce, async (batch, index) => {
      await publishBatch(options, batch, index);
    }),
  ]);
}

async function publishOne(options: PublishOptions, event: OwnEvent, index: number): Promise<void> {
  options.ledger.publishing([event]);
  const body = eventText(event);
  switch (index % repeatedSingles) {
    case 1: {
      // the same request again: its own key says so
      const key = randomUUID();
      await publish(options, { events: [event], body, key });
      await publish(options, { events: [event], body, key, isRepeat: true });
      return;
    }
    case 2:
      // the same event in another request: its id and source say so
      await publish(options, { events: [event], body });
      await publish(options, { events: [event], body: ` ${body}`, isRepeat: true });
      return;
    default:
      await publish(options, { events: [event], body });
  }
}

async function publishBatch(
  options: PublishOptions,
  batch: readonly OwnEvent[],
  index: number,
): Promise<void> {
  options.ledger.publishing(batch);
  const body = `[${batch.map(eventText).join(',\n')}]`;
  const key = randomUUID();
  await publish(options, { events: batch, body, key });
  if (index % repeatedBatches === 1) {
    await publish(options, { events: batch, body, key, isRepeat: true });
  }
}

interface Request {
  readonly events: readonly OwnEvent[];
  readonly body: string;
  readonly key?: string;
  /** Has been answered before: must be answered as a duplicate. */
  readonly isRepeat?: boolean;
}

type Result = { readonly id: string; readonly duplicate: boolean };

async function publish(
  { client, ledger, topic }: PublishOptions,
  { events, body, key, isRepeat = false }: Request,
): Promise<void> {
  const startedAt = performance.now();
  const repeatedBefore = client.repeated;
  const { text } = await client.call('POST', `/topics/${topic}/events`, {
    body,
    ...(key === undefined ? {} : { idempotencyKey: key }),
  });
  ledger.publishMs.push(performance.now() - startedAt);
  const answer = JSON.parse(text) as Result | { results: Result[] };
  const results = 'results' in answer ? answer.results : [answer];
  if (results.length !== events.length) throw new Error(`A publish was answered ${text}`);
  ledger.published(
    events,
    results.map(({ id }) => id),
  );
  if (isRepeat) ledger.repeats += 1;
  // a call that the client had to send again may have been done the first time
  const isCertain = isRepeat || client.repeated === repeatedBefore;
  for (const [index, { duplicate }] of results.entries()) {
    if (duplicate === isRepeat || !isCertain) continue;
    const said = duplicate ? 'answered as a duplicate' : 'published once more by a repetition';
    ledger.faults.push(`${events[index]?.id} was ${said}`);
  }
}

/** An event as it is published; `data` goes in as the text that it is. */
function eventText({ id, source: from, type, subject, dataText }: OwnEvent): string {
  const attributes = JSON.stringify({ id, source: from, type, subject });
  return `${attributes.slice(0, -1)},"data":${dataText}}`;
}

async function inParallel<Item>(
  items: readonly Item[],
  atOnce: number,
  work: (item: Item, index: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      const item = items[index];
      if (item !== undefined) await work(item, index);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}
