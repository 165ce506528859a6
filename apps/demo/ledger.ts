import type { DeadLetter, Message, SeenEvent } from './subscription-client.ts';

/** An event as the demo publishes it. */
export interface OwnEvent extends SeenEvent {
  /** Consumers fail at it each time until it has become a dead letter. */
  readonly isPoison: boolean;
}

/**
 * How a delivery ended for its consumer. `asked` ends were requested and are not answered yet; `left`: the consumer went
 * away; `lost`: it settled too late.
 */
export type End =
  | 'held'
  | 'ack asked'
  | 'acked'
  | 'nack asked'
  | 'nacked'
  | 'rejection asked'
  | 'rejected'
  | 'left'
  | 'lost';

export interface Delivery {
  readonly message: Message;
  readonly way: Way;
  /** Of the second round, after the redrive. */
  readonly isRedriven: boolean;
  readonly receivedAt: number;
  end: End;
}

/**
 * What the endpoint did with a push. `open`: nothing yet; `delayed`: it asked for a delay; `hung`: it never answered;
 * `broken`: the connection was gone before the answer.
 */
export type PushEnd =
  | 'open'
  | 'accepted'
  | 'failed'
  | 'rejected'
  | 'delayed'
  | 'hung'
  | 'dropped'
  | 'broken';

/** One request to the endpoint. */
export interface Push {
  /** `webhook-id`. */
  readonly eventId: string;
  readonly attempt: number;
  readonly way: Way;
  /** Of the second round, after the redrive. */
  readonly isRedriven: boolean;
  readonly receivedAt: number;
  end: PushEnd;
}

/** One event on its way to one subscription. */
export interface Way {
  readonly subscription: string;
  readonly event: OwnEvent;
  readonly deliveries: Delivery[];
  /** Of a push subscription, in the order in which they came. */
  readonly pushes: Push[];
  /** Attempts of pushes of the first round that the broker gave up waiting for, where that was asked. */
  timedOut: ReadonlySet<number>;
  deadLetter: DeadLetter | undefined;
  isRedriven: boolean;
  isFinished: boolean;
}

interface Published {
  readonly event: OwnEvent;
  readonly startedAt: number;
  eventId: string | undefined;
}

/** What the demo has published, and everything that it has seen of it since. Events go by their own CloudEvents ids. */
export class Ledger {
  readonly #filters: ReadonlyMap<string, string | null>;
  readonly #published = new Map<string, Published>();
  readonly #ways = new Map<string, Way>();
  readonly publishMs: number[] = [];
  /** What must not be, in words. */
  readonly faults: string[] = [];
  altered = 0;
  repeats = 0;
  /** Of pushes, and those of them that were not good. */
  signatures = 0;
  badSignatures = 0;
  /** Of the events on their way to subscriptions: how many there will be, and are done or dead. */
  planned = 0;
  finished = 0;
  isRedriving = false;

  /** `filters`: the only type that a subscription gets, or null. */
  constructor(filters: ReadonlyMap<string, string | null>) {
    this.#filters = filters;
  }

  get events(): number {
    return this.#published.size;
  }

  get ways(): readonly Way[] {
    return [...this.#ways.values()];
  }

  startedAt(event: OwnEvent): number {
    return this.#published.get(event.id)?.startedAt ?? 0;
  }

  /** All that will be published. */
  plan(events: readonly OwnEvent[]): void {
    for (const event of events) this.planned += this.#subscriptionsOf(event).length;
  }

  /** Before the first request with these events is sent. */
  publishing(events: readonly OwnEvent[]): void {
    const startedAt = performance.now();
    for (const event of events) {
      this.#published.set(event.id, { event, startedAt, eventId: undefined });
      for (const subscription of this.#subscriptionsOf(event)) {
        this.#ways.set(`${subscription} ${event.id}`, {
          subscription,
          event,
          deliveries: [],
          pushes: [],
          timedOut: new Set(),
          deadLetter: undefined,
          isRedriven: false,
          isFinished: false,
        });
      }
    }
  }

  /** A publish was answered; the ids must be the same each time. */
  published(events: readonly OwnEvent[], eventIds: readonly string[]): void {
    for (const [index, event] of events.entries()) {
      const id = eventIds[index];
      const published = this.#published.get(event.id);
      if (published === undefined || id === undefined) continue;
      if (published.eventId !== undefined && published.eventId !== id) {
        this.faults.push(`${event.id} was answered ${published.eventId} and then ${id}`);
      }
      published.eventId ??= id;
    }
  }

  /** Notes what a consumer got, and returns it without what is not for this subscription. */
  received(subscription: string, messages: readonly Message[]): Delivery[] {
    const receivedAt = performance.now();
    return messages.flatMap((message) => {
      const way = this.#wayOf(subscription, message.event);
      if (way === undefined) return [];
      const delivery: Delivery = {
        message,
        way,
        isRedriven: way.isRedriven,
        receivedAt,
        end: 'held',
      };
      way.deliveries.push(delivery);
      return [delivery];
    });
  }

  /** Notes a push, unless it is not for this subscription. */
  pushed(
    subscription: string,
    { eventId, attempt, event }: Pick<Push, 'eventId' | 'attempt'> & { readonly event: SeenEvent },
  ): Push | undefined {
    const receivedAt = performance.now();
    const way = this.#wayOf(subscription, event);
    if (way === undefined) return undefined;
    const { isRedriven } = way;
    const push: Push = { eventId, attempt, way, isRedriven, receivedAt, end: 'open' };
    way.pushes.push(push);
    return push;
  }

  /** Nothing more comes of this event here. */
  finish(way: Way): void {
    if (way.isFinished) return;
    way.isFinished = true;
    this.finished += 1;
  }

  /** Notes what is in the list of dead letters. */
  died(subscription: string, letter: DeadLetter): void {
    const way = this.#ways.get(`${subscription} ${letter.event.id}`);
    if (way === undefined) {
      this.faults.push(`${subscription} has a dead letter that is not its: ${letter.event.id}`);
      return;
    }
    if (way.deadLetter === undefined) this.#compare(way.event, letter.event, 'a dead letter');
    way.deadLetter = letter;
    this.finish(way);
  }

  /** From now on consumers fail at nothing, and what died is expected once more. */
  beginRedrive(): number {
    this.isRedriving = true;
    const dead = this.ways.filter((way) => way.deadLetter !== undefined);
    for (const way of dead) {
      way.isRedriven = true;
      way.isFinished = false;
      this.finished -= 1;
    }
    return dead.length;
  }

  /** The broker's id of an event, where its publish was answered. */
  eventId(event: OwnEvent): string | undefined {
    return this.#published.get(event.id)?.eventId;
  }

  /** Of an event that came, which is compared with what was published. */
  #wayOf(subscription: string, event: SeenEvent): Way | undefined {
    const way = this.#ways.get(`${subscription} ${event.id}`);
    if (way !== undefined) this.#compare(way.event, event, subscription);
    else this.faults.push(`${subscription} got an event that is not for it: ${event.id}`);
    return way;
  }

  #subscriptionsOf({ type }: OwnEvent): string[] {
    const matching = [...this.#filters].filter(([, only]) => only === null || only === type);
    return matching.map(([subscription]) => subscription);
  }

  #compare(own: OwnEvent, seen: SeenEvent, where: string): void {
    const isSame =
      own.dataText === seen.dataText &&
      own.type === seen.type &&
      own.source === seen.source &&
      own.subject === seen.subject;
    if (isSame) return;
    this.altered += 1;
    this.faults.push(`altered in ${where}: ${own.id} (${own.type}), ${difference(own, seen)}`);
  }
}

function difference(own: OwnEvent, seen: SeenEvent): string {
  if (own.dataText === seen.dataText) return 'its type, source or subject';
  let at = 0;
  while (own.dataText[at] === seen.dataText[at]) at += 1;
  const around = (text: string) => JSON.stringify(text.slice(Math.max(at - 20, 0), at + 20));
  return `its data from character ${at}: ${around(own.dataText)} is ${around(seen.dataText)}`;
}
