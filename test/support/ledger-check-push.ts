import type { DuplicateReason, Violation } from './ledger-findings.ts';
import { eventName, type Ledger, type LeaseEnd, type Push } from './ledger.ts';

export interface PushFindings {
  readonly violations: readonly Violation[];
  /** Pushes that were accepted beside the one that was acked. */
  readonly duplicates: ReadonlyMap<DuplicateReason, number>;
  /** Leases of which no endpoint saw anything: not begun, or not come through. */
  readonly unseen: number;
}

export interface PushCheckOptions {
  /** Those that every event goes to. */
  readonly subscriptions: readonly string[];
  /** Of all leases of these subscriptions. */
  readonly leaseEnds: readonly LeaseEnd[];
  readonly maxAttempts: number;
  /** The ids of events that are dead letters of a subscription. */
  readonly dead: ReadonlyMap<string, ReadonlySet<string>> | undefined;
  /** The ids of events that must have arrived. */
  readonly ids: ReadonlySet<string>;
}

/**
 * Compares what endpoints saw with what the broker wrote down, lease by lease. Endpoints do not see leases, but each push
 * belongs to one, of the same attempt; so each push has a lease that ended, an event is acked once and for what an
 * endpoint accepted, and what was accepted beside that has a lease that ended in another way. Nothing was redriven.
 */
export function checkPushes(ledger: Ledger, options: PushCheckOptions): PushFindings {
  const { subscriptions, leaseEnds, maxAttempts, dead, ids } = options;
  const violations: Violation[] = [];
  const duplicates = new Map<DuplicateReason, number>();
  const endsByEvent = Map.groupBy(leaseEnds, eventName);
  const pushesByEvent = Map.groupBy(ledger.pushes, eventName);
  let unseen = 0;
  for (const subscription of subscriptions) {
    for (const eventId of ids) {
      if (dead?.get(subscription)?.has(eventId)) continue;
      const name = eventName({ subscription, eventId });
      const isAcked = endsByEvent.get(name)?.some(({ outcome }) => outcome === 'acked') ?? false;
      if (!pushesByEvent.has(name)) violations.push({ kind: 'lost', detail: name });
      else if (!isAcked) violations.push({ kind: 'vanished', detail: name });
    }
  }
  for (const name of new Set([...endsByEvent.keys(), ...pushesByEvent.keys()])) {
    const check = new EventCheck(ledger, {
      name,
      pushes: pushesByEvent.get(name) ?? [],
      ends: endsByEvent.get(name) ?? [],
    });
    check.run(maxAttempts);
    violations.push(...check.violations);
    for (const reason of check.duplicates) {
      duplicates.set(reason, (duplicates.get(reason) ?? 0) + 1);
    }
    unseen += check.unseen;
  }
  return { violations, duplicates, unseen };
}

interface EventHistory {
  /** The event on its way to one subscription. */
  readonly name: string;
  readonly pushes: readonly Push[];
  readonly ends: readonly LeaseEnd[];
}

class EventCheck {
  readonly violations: Violation[] = [];
  readonly duplicates: DuplicateReason[] = [];
  unseen = 0;
  readonly #ledger: Ledger;
  readonly #history: EventHistory;

  constructor(ledger: Ledger, history: EventHistory) {
    this.#ledger = ledger;
    this.#history = history;
  }

  run(maxAttempts: number): void {
    const { pushes, ends } = this.#history;
    for (const { attempt } of [...pushes, ...ends]) {
      if (attempt > maxAttempts) this.#violate('attempts_exceeded', String(attempt));
    }
    this.#checkEnds();
    const pushesByAttempt = Map.groupBy(pushes, ({ attempt }) => attempt);
    const endsByAttempt = Map.groupBy(ends, ({ attempt }) => attempt);
    for (const attempt of new Set([...pushesByAttempt.keys(), ...endsByAttempt.keys()])) {
      this.#checkAttempt(pushesByAttempt.get(attempt) ?? [], endsByAttempt.get(attempt) ?? []);
    }
  }

  /** An event ends once, and no worker loses its leases while all of them live. */
  #checkEnds(): void {
    const { ends } = this.#history;
    const last = ends.filter(({ outcome }) => outcome === 'acked' || outcome === 'dead');
    if (last.length > 1) this.#violate('settled_twice', said(last));
    const taken = ends.filter(isTaken);
    if (taken.length > 0 && this.#ledger.disruptions.length === 0) {
      this.#violate('lease_lost_early', said(taken));
    }
  }

  /** Of leases with the same attempt: a release, or a receiver's wish for a delay, gives the attempt back. */
  #checkAttempt(pushes: readonly Push[], ends: readonly LeaseEnd[]): void {
    if (pushes.length > ends.length) {
      const what = `attempt ${pushes[0]?.attempt} came ${pushes.length} times, and ${ends.length} leases ended`;
      this.#violate('unexplained_duplicate', what);
    }
    this.unseen += Math.max(0, ends.length - pushes.length);
    const acks = ends.filter(({ outcome }) => outcome === 'acked');
    if (acks.length > 0 && pushes.every(({ outcome }) => outcome === 'refused')) {
      this.#violate('false_ack', `attempt ${acks[0]?.attempt}`);
    }
    const accepted = pushes.filter(({ outcome }) => outcome === 'accepted').length;
    const others = ends.filter(({ outcome }) => outcome !== 'acked').toSorted(byLikelihood);
    for (const end of others.slice(0, Math.max(0, accepted - acks.length))) {
      this.duplicates.push(reasonOf(end));
    }
  }

  #violate(kind: Violation['kind'], what: string): void {
    this.violations.push({ kind, detail: `${this.#history.name}: ${what}` });
  }
}

/** The lease ended without its worker: the reaper says why. */
function isTaken({ outcome, error }: LeaseEnd): boolean {
  const isReaped = error === 'the worker is gone' || error === 'lease expired';
  return outcome === 'lease_expired' || (outcome === 'dead' && isReaped);
}

/** What most likely hides a push that was accepted, first. */
function byLikelihood(a: LeaseEnd, b: LeaseEnd): number {
  return Number(isTaken(b)) - Number(isTaken(a));
}

function reasonOf(end: LeaseEnd): DuplicateReason {
  if (isTaken(end)) return 'accepted, and the worker lost its lease before it was acked';
  return end.outcome === 'released'
    ? 'accepted, and released by a worker that stopped'
    : 'accepted, and the answer was lost or too late';
}

function said(ends: readonly LeaseEnd[]): string {
  return ends.map(({ outcome, attempt }) => `${outcome} at attempt ${attempt}`).join(', ');
}
