import type { Delivery, Ledger, Way } from './ledger.ts';
import {
  type Explanation,
  explainPushes,
  type PushFindings,
  pushFindingsOf,
} from './push-findings.ts';

/** What became of everything, counted. */
export interface Findings {
  readonly events: number;
  readonly repeats: number;
  readonly ways: number;
  readonly delivered: number;
  /** Leases of which no answer came: their connections had been closed. */
  readonly unseen: number;
  /** By reason. */
  readonly retried: ReadonlyMap<string, number>;
  readonly duplicates: ReadonlyMap<string, number>;
  readonly deadLetters: ReadonlyMap<string, number>;
  readonly redriven: number;
  readonly lost: number;
  readonly altered: number;
  readonly publishMs: readonly number[];
  readonly endToEndMs: readonly number[];
  readonly push: PushFindings | undefined;
  /** What must not be, in words; without any, the broker has kept its promises. */
  readonly faults: readonly string[];
}

export interface FindingsOptions {
  readonly attemptsMax: number;
  readonly visibilityTimeoutMs: number;
  /** Leases of each subscription that closed connections can have taken with them. */
  readonly unseenMax: number;
  /** The subscription that is pushed to, if there is one. */
  readonly pushed: string | undefined;
}

/** Goes through the ledger and explains each delivery beyond the first, each dead letter, and what is missing. */
export function findingsOf(ledger: Ledger, options: FindingsOptions): Findings {
  const faults = [...ledger.faults];
  const retried = new Map<string, number>();
  const duplicates = new Map<string, number>();
  const deadLetters = new Map<string, number>();
  const endToEndMs: number[] = [];
  const unseen = new Map<string, number>();
  let [delivered, redriven, lost] = [0, 0, 0];
  const accuse = (way: Way, what: string): void => {
    const number = ledger.eventId(way.event) ?? 'not accepted';
    faults.push(`${way.subscription}: ${way.event.id} (${number}, ${way.event.type}) ${what}`);
  };
  for (const way of ledger.ways) {
    const first = way.deliveries[0];
    delivered += way.deliveries.length;
    if (first?.message.delivery_attempt === 1) {
      endToEndMs.push(first.receivedAt - ledger.startedAt(way.event));
    }
    increment(unseen, way.subscription, unseenOf(way));
    const explained = [...explain(way, options), ...explainPushes(way, options.attemptsMax)];
    for (const { what, isFault, kind } of explained) {
      if (kind === 'duplicate') increment(duplicates, what);
      if (kind === 'retry') increment(retried, what);
      if (isFault) accuse(way, what);
    }
    if (way.deadLetter !== undefined) {
      const reason = reasonOfDeath(way, options);
      increment(deadLetters, reason.what);
      if (reason.isFault) accuse(way, reason.what);
      if (way.isRedriven && way.isFinished) redriven += 1;
    }
    const loss = lossOf(way);
    if (loss !== undefined) {
      lost += 1;
      accuse(way, loss);
    }
    for (const wrong of wrongIds(way, ledger.eventId(way.event))) accuse(way, wrong);
  }
  for (const [subscription, leases] of unseen) {
    if (leases > options.unseenMax)
      faults.push(`${subscription}: ${leases} leases were never seen`);
  }
  return {
    events: ledger.events,
    repeats: ledger.repeats,
    ways: ledger.ways.filter((way) => way.subscription !== options.pushed).length,
    delivered,
    unseen: [...unseen.values()].reduce((total, leases) => total + leases, 0),
    retried,
    duplicates,
    deadLetters,
    redriven,
    lost,
    altered: ledger.altered,
    publishMs: ledger.publishMs,
    endToEndMs,
    push: pushFindingsOf(ledger, options.pushed),
    faults,
  };
}

/** What is missing of an event, if something is. */
function lossOf(way: Way): string | undefined {
  const { deliveries, pushes, deadLetter, event, isFinished } = way;
  const times = deliveries.length + pushes.length;
  if (times === 0) return 'never came';
  if (!isFinished) return `came ${times} times and was never done`;
  const isDead = event.isPoison || deliveries.some(({ end }) => end === 'rejected');
  return isDead && deadLetter === undefined ? 'was given up and is no dead letter' : undefined;
}

/** Why each delivery beyond the first was made. */
function* explain(way: Way, options: FindingsOptions): Generator<Explanation> {
  // in the order of their leases: answers may overtake each other on their way to us
  const deliveries = way.deliveries.toSorted(
    (a, b) => leaseBegin(a, options) - leaseBegin(b, options),
  );
  for (const [index, delivery] of deliveries.entries()) {
    if (delivery.message.delivery_attempt > options.attemptsMax) {
      const what = `came for attempt ${delivery.message.delivery_attempt} of ${options.attemptsMax}`;
      yield { kind: 'retry', what, isFault: true };
    }
    const previous = deliveries[index - 1];
    if (previous !== undefined) yield explainNext(previous, delivery, options);
  }
}

function explainNext(previous: Delivery, next: Delivery, options: FindingsOptions): Explanation {
  if (next.isRedriven && !previous.isRedriven) {
    return { kind: 'redrive', what: 'came again after the redrive', isFault: false };
  }
  switch (previous.end) {
    case 'nack asked':
    case 'nacked':
      return { kind: 'retry', what: 'after a nack', isFault: false };
    case 'acked':
    case 'rejected':
      return { kind: 'duplicate', what: `came again although ${previous.end}`, isFault: true };
    case 'held':
    case 'ack asked':
    case 'rejection asked':
    case 'left':
    case 'lost':
      break;
  }
  // on the database's clock alone
  const isOver = Date.parse(previous.message.lease_expires_at) <= leaseBegin(next, options);
  if (!isOver) {
    return { kind: 'duplicate', what: 'was leased to two at a time', isFault: true };
  }
  const who = previous.end === 'lost' ? 'and the ack came too late' : 'as its consumer had left';
  return { kind: 'duplicate', what: `lease ran out, ${who}`, isFault: false };
}

function leaseBegin({ message }: Delivery, { visibilityTimeoutMs }: FindingsOptions): number {
  return Date.parse(message.lease_expires_at) - visibilityTimeoutMs;
}

function reasonOfDeath(way: Way, { attemptsMax }: FindingsOptions) {
  const { reason = '', attempts = 0 } = way.deadLetter ?? {};
  const isRejected = way.deliveries.some(({ end }) => end === 'rejected' || end === 'lost');
  if (reason === 'rejected' && isRejected) {
    return { what: 'rejected by a consumer', isFault: false };
  }
  if (reason === 'rejected' && way.pushes.some(({ end }) => end === 'rejected')) {
    return { what: 'answered 422', isFault: false };
  }
  if (reason === 'max_attempts' && way.event.isPoison && attempts === attemptsMax) {
    return { what: `failed ${attemptsMax} times`, isFault: false };
  }
  return { what: `died unexplained: ${reason} after ${attempts} attempts`, isFault: true };
}

/** The broker's id is that of the publish in each delivery, and so it is after a redrive. */
function wrongIds(way: Way, eventId: string | undefined): string[] {
  const ids = [
    ...way.deliveries.map(({ message }) => message.event_id),
    ...way.pushes.map((push) => push.eventId),
  ];
  return ids.filter((id) => id !== eventId).map((id) => `came with the id ${id}`);
}

/** The attempts that are missing between those that were seen. */
function unseenOf({ deliveries, pushes }: Way): number {
  const seen = [
    ...deliveries.map(({ isRedriven, message }) => [isRedriven, message.delivery_attempt] as const),
    ...pushes.map(({ isRedriven, attempt }) => [isRedriven, attempt] as const),
  ];
  let unseen = 0;
  for (const round of [false, true]) {
    const attempts = seen
      .filter(([isRedriven]) => isRedriven === round)
      .map(([, attempt]) => attempt);
    unseen += Math.max(0, ...attempts) - new Set(attempts).size;
  }
  return unseen;
}

function increment(counts: Map<string, number>, key: string, by = 1): void {
  counts.set(key, (counts.get(key) ?? 0) + by);
}
