import { checkPushes } from './ledger-check-push.ts';
import type { DuplicateReason, Violation, ViolationKind } from './ledger-findings.ts';
import {
  eventName,
  type Delivery,
  type LeaseEnd,
  type Ledger,
  type PublishOperation,
  type SettleOperation,
} from './ledger.ts';

export interface Findings {
  readonly violations: readonly Violation[];
  readonly duplicates: Readonly<Partial<Record<DuplicateReason, number>>>;
  readonly counts: Readonly<
    Record<
      | 'accepted'
      | 'unknown_publishes'
      | 'failed_publishes'
      | 'deliveries'
      | 'acked'
      | 'lease_lost'
      | 'unseen_attempts'
      | 'pushes'
      | 'refused_pushes'
      | 'unknown_pushes',
      number
    >
  >;
}

export interface CheckOptions {
  /** Those that every event goes to. */
  readonly subscriptions: readonly string[];
  /** The same, of those that are pushed to. */
  readonly pushSubscriptions?: readonly string[];
  /** Of all leases of the latter. */
  readonly leaseEnds?: readonly LeaseEnd[];
  readonly maxAttempts: number;
  /** The ids of events that are dead letters of a subscription. */
  readonly dead?: ReadonlyMap<string, ReadonlySet<string>>;
  /** The ids of all events that are in the database: those whose publish had an unknown outcome, too, must arrive. */
  readonly stored?: readonly string[];
}

/** Leases are measured by the database's clock, which is not ours. */
const clockToleranceMs = 50;

/** What a history says, once nothing is on its way any more. */
export function checkLedger(ledger: Ledger, options: CheckOptions): Findings {
  const check = new Check(ledger, options);
  return check.run();
}

/** Violations by kind with the first few of each, for messages. */
export function describeFindings({ violations, duplicates, counts }: Findings): string {
  const kinds = Map.groupBy(violations, ({ kind }) => kind);
  const lines = [...kinds].map(
    ([kind, those]) =>
      `${kind} × ${those.length}: ${those
        .slice(0, 3)
        .map(({ detail }) => detail)
        .join(' | ')}`,
  );
  return [JSON.stringify(counts), JSON.stringify(duplicates), ...lines].join('\n');
}

class Check {
  readonly #ledger: Ledger;
  readonly #options: CheckOptions;
  readonly #violations: Violation[] = [];
  readonly #duplicates: Partial<Record<DuplicateReason, number>> = {};
  /** By subscription and event; each in the order of the leases. */
  readonly #deliveries: Map<string, Delivery[]>;
  /** By lease. */
  readonly #settles = new Map<string, SettleOperation[]>();
  readonly #byTag: Map<string, PublishOperation[]>;
  #unseen = 0;

  constructor(ledger: Ledger, options: CheckOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#deliveries = Map.groupBy(ledger.deliveries, eventName);
    for (const deliveries of this.#deliveries.values()) deliveries.sort(byAge);
    for (const settle of ledger.settles) {
      for (const leaseId of settle.leaseIds) {
        const known = this.#settles.get(leaseId);
        if (known === undefined) this.#settles.set(leaseId, [settle]);
        else known.push(settle);
      }
    }
    this.#byTag = new Map();
    for (const publish of ledger.publishes) {
      for (const tag of publish.tags)
        this.#byTag.set(tag, [...(this.#byTag.get(tag) ?? []), publish]);
    }
  }

  run(): Findings {
    this.#checkArrival();
    this.#checkPublishes();
    for (const deliveries of this.#deliveries.values()) this.#checkLeases(deliveries);
    this.#checkPushes();
    for (const defect of this.#ledger.defects) this.#violate('defect', defect);
    const { publishes, settles, deliveries, pushes, accepted } = this.#ledger;
    const acks = settles.filter(({ verb, outcome }) => verb === 'ack' && outcome === 'ok');
    return {
      violations: this.#violations,
      duplicates: this.#duplicates,
      counts: {
        accepted,
        unknown_publishes: publishes.filter(({ outcome }) => outcome === 'unknown').length,
        failed_publishes: publishes.filter(({ outcome }) => outcome === 'fail').length,
        deliveries: deliveries.length,
        acked: acks.reduce((sum, { succeeded }) => sum + succeeded.size, 0),
        lease_lost: acks.reduce((sum, ack) => sum + ack.leaseIds.length - ack.succeeded.size, 0),
        unseen_attempts: this.#unseen,
        pushes: pushes.length,
        refused_pushes: pushes.filter(({ outcome }) => outcome === 'refused').length,
        unknown_pushes: pushes.filter(({ outcome }) => outcome === 'unknown').length,
      },
    };
  }

  #violate(kind: ViolationKind, detail: string): void {
    this.#violations.push({ kind, detail });
  }

  /** Everything that was accepted arrives, everywhere, and is acknowledged or dead in the end. */
  #checkArrival(): void {
    const { subscriptions, dead } = this.#options;
    for (const subscription of subscriptions) {
      for (const eventId of this.#idsToArrive()) {
        const name = eventName({ subscription, eventId });
        if (dead?.get(subscription)?.has(eventId)) continue;
        const deliveries = this.#deliveries.get(name);
        if (deliveries === undefined) this.#violate('lost', name);
        else if (!deliveries.some((each) => this.#mayBeAcked(each)))
          this.#violate('vanished', name);
      }
    }
  }

  #idsToArrive(): Set<string> {
    const ids = new Set(this.#options.stored);
    for (const publish of this.#ledger.publishes) {
      if (publish.outcome === 'ok') for (const { id } of publish.results) ids.add(id);
    }
    return ids;
  }

  #checkPushes(): void {
    const { pushSubscriptions: subscriptions = [], leaseEnds = [] } = this.#options;
    const { maxAttempts, dead } = this.#options;
    const ids = this.#idsToArrive();
    const found = checkPushes(this.#ledger, { subscriptions, leaseEnds, maxAttempts, dead, ids });
    this.#violations.push(...found.violations);
    for (const [reason, count] of found.duplicates) this.#explain(reason, count);
    this.#unseen += found.unseen;
  }

  #mayBeAcked({ leaseId }: Delivery): boolean {
    return this.#settlesOf(leaseId, 'ack').some((ack) => settled(ack, leaseId));
  }

  /** What arrives was published, once for each key, and no more often than the publishes can have stored it. */
  #checkPublishes(): void {
    const idsByTag = new Map<string, Set<string>>();
    for (const { tag, eventId } of [...this.#ledger.deliveries, ...this.#ledger.pushes]) {
      idsByTag.set(tag, (idsByTag.get(tag) ?? new Set()).add(eventId));
    }
    for (const publish of this.#ledger.publishes) {
      for (const [index, { id }] of publish.results.entries()) {
        const tag = publish.tags[index] ?? '';
        idsByTag.set(tag, (idsByTag.get(tag) ?? new Set()).add(id));
      }
    }
    for (const [tag, ids] of idsByTag) {
      const publishes = this.#byTag.get(tag) ?? [];
      const sure = publishes.filter(({ outcome }) => outcome === 'ok').length;
      const unsure = publishes.filter(({ outcome }) => outcome === 'unknown').length;
      const isKeyed = publishes.length > 0 && publishes.every(({ key }) => key !== undefined);
      const said = `${tag}: ${[...ids].join(', ')} from ${publishes.map(({ outcome, code }) => code ?? outcome).join(', ')}`;
      if (ids.size > sure + unsure) this.#violate('unexpected', said);
      else if (isKeyed && ids.size > 1) this.#violate('key_stored_twice', said);
      else if (ids.size > 1) {
        const reason = 'the outcome of the publish was unknown, and it was repeated without a key';
        this.#explain(reason, ids.size - 1);
      }
    }
  }

  /** All that is known of one event in one subscription. */
  #checkLeases(deliveries: readonly Delivery[]): void {
    for (const [index, delivery] of deliveries.entries()) {
      const { attempt, leaseId } = delivery;
      if (attempt > this.#options.maxAttempts) {
        this.#violate('attempts_exceeded', `${eventName(delivery)}: ${attempt}`);
      }
      const next = deliveries[index + 1];
      if (next !== undefined) this.#checkDuplicate(delivery, next);
      for (const ack of this.#settlesOf(leaseId, 'ack')) {
        if (ack.outcome === 'ok') this.#checkAck(ack, delivery, deliveries.slice(index + 1));
      }
    }
    this.#checkUnseen(deliveries);
  }

  #checkDuplicate(delivery: Delivery, next: Delivery): void {
    const { leaseId, receive } = delivery;
    if (this.#settlesOf(leaseId, 'nack').some((nack) => settled(nack, leaseId))) {
      this.#explain('nacked');
    } else if (next.receive.doneAt >= receive.at + receive.leaseMs - clockToleranceMs) {
      this.#explain('the lease ran out');
    } else {
      const gap = Math.round(next.receive.doneAt - receive.at);
      const said = `${eventName(delivery)}: again ${gap} ms after a lease of ${receive.leaseMs} ms`;
      this.#violate('unexplained_duplicate', said);
    }
  }

  /**
   * An ack that succeeds takes the event out for good, under the newest lease: no newer one may exist, neither before nor
   * after it. One that is refused needs a reason that we can see.
   */
  #checkAck(ack: SettleOperation, delivery: Delivery, newer: readonly Delivery[]): void {
    const { leaseId, receive } = delivery;
    const said = `${eventName(delivery)}: attempt ${delivery.attempt}, newer: ${newer.map(({ attempt }) => attempt).join(', ')}`;
    if (ack.succeeded.has(leaseId)) {
      if (newer.some((each) => each.receive.doneAt <= ack.at)) this.#violate('stale_ack', said);
      else if (newer.length > 0) this.#violate('ack_undone', said);
      return;
    }
    const endsAt = receive.at + receive.leaseMs - clockToleranceMs;
    const others = this.#settles
      .get(leaseId)
      ?.filter((each) => each !== ack && each.at < ack.doneAt);
    if (ack.doneAt < endsAt && others?.length === 0) this.#violate('lease_lost_early', said);
  }

  /** Attempts that no answer told us of: in an answer that was lost, or claimed for nobody when something was killed. */
  #checkUnseen(deliveries: readonly Delivery[]): void {
    const last = deliveries.at(-1);
    if (last === undefined) return;
    const unseen = last.attempt - new Set(deliveries.map(({ attempt }) => attempt)).size;
    if (unseen <= 0) return;
    this.#unseen += unseen;
    const { receives, disruptions } = this.#ledger;
    const wasDisrupted = disruptions.some((at) => at < last.receive.doneAt);
    const lostAnswers = receives.filter(
      ({ subscription, outcome, at }) =>
        subscription === last.subscription && outcome !== 'ok' && at < last.receive.doneAt,
    );
    if (!wasDisrupted && lostAnswers.length < unseen) {
      this.#violate('unexplained_attempt', `${eventName(last)}: ${unseen} before ${last.attempt}`);
    }
  }

  #settlesOf(leaseId: string, verb: SettleOperation['verb']): SettleOperation[] {
    return this.#settles.get(leaseId)?.filter((settle) => settle.verb === verb) ?? [];
  }

  #explain(reason: DuplicateReason, count = 1): void {
    this.#duplicates[reason] = (this.#duplicates[reason] ?? 0) + count;
  }
}

/** The order of leases: by attempt; a release gives an attempt back, so by time where they are alike. */
function byAge(a: Delivery, b: Delivery): number {
  return a.attempt - b.attempt || a.receive.doneAt - b.receive.doneAt;
}

/** Whether a settle took effect on a lease, as far as can be told. */
function settled(settle: SettleOperation, leaseId: string): boolean {
  return settle.outcome === 'unknown' || settle.succeeded.has(leaseId);
}
