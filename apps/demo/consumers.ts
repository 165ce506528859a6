import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from './client.ts';
import type { Delivery, Ledger } from './ledger.ts';
import { ack, nack, receive } from './subscription-client.ts';

export interface ConsumerOptions {
  readonly client: Client;
  readonly ledger: Ledger;
  readonly subscription: string;
  /** The subscription's max_attempts. */
  readonly attemptsMax: number;
  /** Ends the consumer after what it has in hand. */
  readonly signal: AbortSignal;
}

type Behaviour = (options: ConsumerOptions, deliveries: Delivery[]) => Promise<void>;

interface Kind {
  readonly maxMessages: number;
  /** What it does with what it gets at first; afterwards it does its work. */
  readonly misdeed?: Behaviour;
  /** How often. */
  readonly times?: number;
}

/** Several fail on purpose, each in its way, with the first that they get. */
const kinds = {
  steady: { maxMessages: 50 },
  small: { maxMessages: 7 },
  failing: { maxMessages: 3, misdeed: failForNow, times: 3 },
  rejecting: { maxMessages: 2, misdeed: reject, times: 1 },
  leaving: { maxMessages: 2, misdeed: leave, times: 2 },
  late: { maxMessages: 2, misdeed: ackLate, times: 1 },
} as const satisfies Record<string, Kind>;

export const failingKinds = ['failing', 'rejecting', 'leaving', 'late'] as const;
export const workingKinds = ['steady', 'small', 'steady'] as const;

const waitSeconds = 2;
/** A lease runs out, the reaper sees it, and the event comes again. */
const redeliveryMs = 15_000;
const hangUps = 12;
const hangUpMessages = 5;
/** What closed connections can take with them, of one subscription. */
export const hungUpMax = hangUps * hangUpMessages;

/**
 * Receives and settles until it is told to stop. `onBegin` is called when it has failed for the first time.
 */
export async function consume(
  options: ConsumerOptions,
  name: keyof typeof kinds,
  onBegin: () => void = () => undefined,
): Promise<void> {
  const { client, ledger, subscription, signal } = options;
  const kind: Kind = kinds[name];
  let misdeeds = kind.times ?? 0;
  while (!signal.aborted) {
    const messages = await receive(client, subscription, {
      maxMessages: kind.maxMessages,
      waitSeconds,
      signal,
    }).catch((error: unknown) => {
      if (signal.aborted) return [];
      throw error;
    });
    const deliveries = ledger.received(subscription, messages);
    if (deliveries.length === 0) continue;
    if (misdeeds > 0 && kind.misdeed !== undefined && !ledger.isRedriving) {
      misdeeds -= 1;
      onBegin();
      await kind.misdeed(options, deliveries);
    } else await work(options, deliveries);
  }
}

/** Closes its connection while it waits, a few times: what was leased for it meanwhile must come again. */
export async function hangUp(options: ConsumerOptions): Promise<void> {
  const { client, ledger, subscription, signal } = options;
  for (let time = 0; time < hangUps && !signal.aborted; time += 1) {
    const gone = AbortSignal.any([signal, AbortSignal.timeout(3 + time * 4)]);
    const messages = await receive(client, subscription, {
      maxMessages: hangUpMessages,
      waitSeconds,
      signal: gone,
    }).catch((error: unknown) => {
      if (gone.aborted) return [];
      throw error;
    });
    const deliveries = ledger.received(subscription, messages);
    if (deliveries.length > 0) await work(options, deliveries);
  }
}

/** Acks what can be done, and nacks poison, which is never done. */
async function work(options: ConsumerOptions, deliveries: Delivery[]): Promise<void> {
  const { client, ledger, subscription, attemptsMax } = options;
  const isDone = ({ way }: Delivery): boolean => !way.event.isPoison || ledger.isRedriving;
  const done = deliveries.filter(isDone);
  const failed = deliveries.filter((delivery) => !isDone(delivery));
  if (done.length > 0) {
    mark(done, 'ack asked');
    const lost = await ack(client, subscription, leaseIds(done));
    for (const delivery of markAnswered(done, 'acked', lost)) ledger.finish(delivery.way);
  }
  if (failed.length > 0) {
    mark(failed, 'nack asked');
    const leases = leaseIds(failed).map((id) => ({ lease_id: id, reason: 'poison' }));
    const lost = await nack(client, subscription, leases);
    for (const { way, message } of markAnswered(failed, 'nacked', lost)) {
      if (message.delivery_attempt >= attemptsMax) ledger.finish(way);
    }
  }
}

async function failForNow(options: ConsumerOptions, deliveries: Delivery[]): Promise<void> {
  mark(deliveries, 'nack asked');
  const reason = 'failing on purpose';
  const leases = leaseIds(deliveries).map((id) => ({ lease_id: id, delay_seconds: 1, reason }));
  markAnswered(deliveries, 'nacked', await nack(options.client, options.subscription, leases));
}

async function reject(options: ConsumerOptions, deliveries: Delivery[]): Promise<void> {
  mark(deliveries, 'rejection asked');
  const reason = 'rejected on purpose';
  const leases = leaseIds(deliveries).map((id) => ({ lease_id: id, dead_letter: true, reason }));
  const lost = await nack(options.client, options.subscription, leases);
  for (const { way } of markAnswered(deliveries, 'rejected', lost)) options.ledger.finish(way);
}

async function leave(_options: ConsumerOptions, deliveries: Delivery[]): Promise<void> {
  mark(deliveries, 'left');
}

/** Acks when somebody else has been given the same events: nothing must come of it. */
async function ackLate(options: ConsumerOptions, deliveries: Delivery[]): Promise<void> {
  const { client, subscription, ledger, signal } = options;
  mark(deliveries, 'left');
  const deadline = performance.now() + redeliveryMs;
  const isWaiting = (): boolean => deliveries.some((delivery) => isLatest(delivery));
  while (isWaiting() && performance.now() < deadline && !signal.aborted) await delay(50);
  const overrun = deliveries.filter((delivery) => !isLatest(delivery));
  if (overrun.length === 0) return;
  const lost = await ack(client, subscription, leaseIds(overrun));
  for (const delivery of markAnswered(overrun, 'acked', lost)) {
    ledger.faults.push(
      `an ack of an old lease was accepted: ${delivery.message.lease_id} (${delivery.way.event.id})`,
    );
  }
}

function isLatest(delivery: Delivery): boolean {
  return delivery.way.deliveries.at(-1) === delivery;
}

function leaseIds(deliveries: readonly Delivery[]): string[] {
  return deliveries.map(({ message }) => message.lease_id);
}

function mark(deliveries: readonly Delivery[], end: Delivery['end']): void {
  for (const delivery of deliveries) delivery.end = end;
}

/** Notes how deliveries ended, and returns those whose lease was not lost. */
function markAnswered(
  deliveries: readonly Delivery[],
  end: Delivery['end'],
  lost: ReadonlySet<string>,
): Delivery[] {
  const isLost = ({ message }: Delivery): boolean => lost.has(message.lease_id);
  for (const delivery of deliveries) delivery.end = isLost(delivery) ? 'lost' : end;
  return deliveries.filter((delivery) => !isLost(delivery));
}
