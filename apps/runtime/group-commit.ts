import { setImmediate } from 'node:timers/promises';
import { outsideSpan } from './tracing.ts';

/** What travels together with others: it counts for so many events and bytes. */
export interface Weighed {
  readonly events: number;
  readonly bytes: number;
}

export interface GroupCommitOptions<Item extends Weighed> {
  /** Of one call; an item that is larger by itself goes alone. */
  readonly eventsMax: number;
  readonly bytesMax: number;
  /** Makes one call for all of them, and answers each. Must not reject. */
  readonly send: (items: readonly Item[]) => Promise<void>;
}

/**
 * One call under way per key; what comes meanwhile makes up the next one, first come first served. There is no timer: an
 * idle lane sends as soon as the requests that arrived together have been read.
 */
export class GroupCommit<Item extends Weighed> {
  readonly #options: GroupCommitOptions<Item>;
  /** Of each key that has something to send or under way: what waits. */
  readonly #lanes = new Map<number, Item[]>();
  readonly #whenIdle = new Set<() => void>();

  constructor(options: GroupCommitOptions<Item>) {
    this.#options = options;
  }

  add(key: number, item: Item): void {
    const lane = this.#lanes.get(key);
    if (lane !== undefined) {
      lane.push(item);
      return;
    }
    const started = [item];
    this.#lanes.set(key, started);
    // what the first began is there for all that come until it is idle
    void outsideSpan(() => this.#run(key, started));
  }

  /** Waits until everything is sent and answered, until the deadline at the latest; returns what was not sent. */
  async drain(deadline: AbortSignal): Promise<Item[]> {
    if (this.#lanes.size > 0 && !deadline.aborted) {
      await new Promise<void>((resolve) => {
        const end = (): void => {
          this.#whenIdle.delete(end);
          deadline.removeEventListener('abort', end);
          resolve();
        };
        this.#whenIdle.add(end);
        deadline.addEventListener('abort', end, { once: true });
      });
    }
    return [...this.#lanes.values()].flatMap((lane) => lane.splice(0));
  }

  async #run(key: number, lane: Item[]): Promise<void> {
    while (lane.length > 0) {
      // what has come over other connections in the same moment travels along
      await setImmediate();
      const batch = this.#take(lane);
      if (batch.length > 0) await this.#options.send(batch);
    }
    this.#lanes.delete(key);
    if (this.#lanes.size > 0) return;
    for (const end of this.#whenIdle) end();
  }

  #take(lane: Item[]): Item[] {
    const { eventsMax, bytesMax } = this.#options;
    let count = 0;
    let events = 0;
    let bytes = 0;
    for (const item of lane) {
      events += item.events;
      bytes += item.bytes;
      if (count > 0 && (events > eventsMax || bytes > bytesMax)) break;
      count += 1;
    }
    return lane.splice(0, count);
  }
}
