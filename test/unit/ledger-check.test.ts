// The ledger of the system tests finds what it is there for: one made-up history for each kind of violation, and for each
// thing that looks like one and is none.
import { describe, expect, test } from 'vitest';
import { checkLedger, type Findings } from '#test/support/ledger-check.ts';
import { Ledger, type Delivery, type Outcome, type SettleOperation } from '#test/support/ledger.ts';

const leaseMs = 1000;

/** Writes a history with times of our choice, in milliseconds. */
class History {
  readonly ledger = new Ledger();

  publish(tag: string, ids: string[], options: { outcome?: Outcome; key?: string } = {}): this {
    const { outcome = 'ok', key } = options;
    const results = ids.map((id) => ({ id, duplicate: false }));
    const times = { at: 0, doneAt: 1, code: undefined };
    this.ledger.publishes.push({ ...times, tags: [tag], key, outcome, results });
    return this;
  }

  deliver(eventId: string, attempt: number, at: number, tag = eventId): Delivery {
    const receive = this.ledger.beginReceive('s', leaseMs);
    const message = { eventId, tag, attempt, leaseId: `${eventId}/${attempt}/${at}` };
    const [delivery] = this.ledger.endReceive(receive, [message]);
    Object.assign(receive, { at, doneAt: at + 1 });
    return delivery!;
  }

  settle(
    verb: SettleOperation['verb'],
    delivery: Delivery,
    at: number,
    outcome: Outcome | 'refused' = 'ok',
  ): this {
    const { leaseId } = delivery;
    const operation = this.ledger.beginSettle(verb, 's', [leaseId]);
    if (outcome === 'ok' || outcome === 'refused') {
      this.ledger.endSettle(operation, outcome === 'ok' ? [leaseId] : []);
    } else this.ledger.endOtherwise(operation, outcome, 'made up');
    Object.assign(operation, { at, doneAt: at + 1 });
    return this;
  }

  check(options: { dead?: string[]; stored?: string[] } = {}): Findings {
    return checkLedger(this.ledger, {
      subscriptions: ['s'],
      maxAttempts: 3,
      dead: new Map([['s', new Set(options.dead)]]),
      stored: options.stored ?? [],
    });
  }

  kinds(options: Parameters<History['check']>[0] = {}): string[] {
    return this.check(options).violations.map(({ kind }) => kind);
  }
}

function acked(eventId = 'a'): History {
  const history = new History().publish(eventId, [eventId]);
  return history.settle('ack', history.deliver(eventId, 1, 10), 20);
}

describe('histories of a broker that keeps its promises', () => {
  test('delivered once and acked', () => expect(acked().kinds()).toEqual([]));

  test('an event of a publish that failed, and did not come', () => {
    expect(acked().publish('b', [], { outcome: 'fail' }).kinds()).toEqual([]);
  });

  test('a dead letter needs no ack', () => {
    expect(new History().publish('a', ['a']).kinds({ dead: ['a'] })).toEqual([]);
  });

  test('again after the lease ran out, and the late ack refused', () => {
    const history = new History().publish('a', ['a']);
    const first = history.deliver('a', 1, 10);
    const second = history.deliver('a', 2, 10 + leaseMs);
    history.settle('ack', first, 1100, 'refused').settle('ack', second, 1200);
    expect(history.check()).toMatchObject({
      violations: [],
      duplicates: { 'the lease ran out': 1 },
    });
  });

  test('again after a nack, and again after an ack of unknown outcome whose lease ran out', () => {
    const history = new History().publish('a', ['a']);
    history.settle('nack', history.deliver('a', 1, 10), 20);
    history.settle('ack', history.deliver('a', 2, 30), 40, 'unknown');
    history.settle('ack', history.deliver('a', 3, 40 + leaseMs), 1200);
    const duplicates = { nacked: 1, 'the lease ran out': 1 };
    expect(history.check()).toMatchObject({ violations: [], duplicates });
  });

  test('a publish of unknown outcome that is repeated without a key may be stored twice', () => {
    const history = new History().publish('t', [], { outcome: 'unknown' }).publish('t', ['b']);
    history.settle('ack', history.deliver('a', 1, 10, 't'), 20);
    history.settle('ack', history.deliver('b', 1, 10, 't'), 20);
    expect(history.kinds()).toEqual([]);
  });

  test('an attempt in an answer that was lost', () => {
    const history = new History().publish('a', ['a']);
    const lost = history.ledger.beginReceive('s', leaseMs);
    Object.assign(lost, { at: 5, doneAt: 6 });
    history.settle('ack', history.deliver('a', 2, 1100), 1200);
    expect(history.check()).toMatchObject({ violations: [], counts: { unseen_attempts: 1 } });
  });
});

describe('violations', () => {
  test('lost: accepted, or stored, and never delivered', () => {
    expect(new History().publish('a', ['a']).kinds()).toEqual(['lost']);
    expect(acked().kinds({ stored: ['a', 'b'] })).toEqual(['lost']);
  });

  test('vanished: delivered, not acked, and gone', () => {
    const history = new History().publish('a', ['a']);
    history.settle('ack', history.deliver('a', 1, 10), 2000, 'refused');
    expect(history.kinds()).toEqual(['vanished']);
  });

  test('unexpected: never published, or by a publish that was answered as failed', () => {
    const history = acked();
    history.settle('ack', history.deliver('b', 1, 10), 20);
    expect(history.kinds()).toEqual(['unexpected']);
    expect(history.publish('b', [], { outcome: 'fail' }).kinds()).toEqual(['unexpected']);
    expect(history.publish('b', [], { outcome: 'unknown' }).kinds()).toEqual([]);
  });

  test('key_stored_twice: two ids under one key', () => {
    const history = new History();
    history.publish('t', [], { outcome: 'unknown', key: 'k' }).publish('t', ['b'], { key: 'k' });
    history.settle('ack', history.deliver('a', 1, 10, 't'), 20);
    history.settle('ack', history.deliver('b', 1, 10, 't'), 20);
    expect(history.kinds()).toEqual(['key_stored_twice']);
  });

  test('unexplained_duplicate: again while the lease was held', () => {
    const history = new History().publish('a', ['a']);
    history.deliver('a', 1, 10);
    history.settle('ack', history.deliver('a', 2, 500), 600);
    expect(history.kinds()).toEqual(['unexplained_duplicate']);
  });

  test('unexplained_attempt: one that nobody saw, and no answer was lost', () => {
    const history = new History().publish('a', ['a']);
    history.settle('ack', history.deliver('a', 2, 500), 600);
    expect(history.kinds()).toEqual(['unexplained_attempt']);
  });

  test('stale_ack: of an old lease, sent when the newer one had been received', () => {
    const history = new History().publish('a', ['a']);
    const first = history.deliver('a', 1, 10);
    history.deliver('a', 2, 1100);
    expect(history.settle('ack', first, 1200).kinds()).toEqual(['stale_ack']);
  });

  test('ack_undone: delivered again after an ack that succeeded', () => {
    const history = new History().publish('a', ['a']);
    history.settle('ack', history.deliver('a', 1, 10), 20);
    history.settle('ack', history.deliver('a', 2, 1100), 1200);
    expect(history.kinds()).toEqual(['ack_undone']);
  });

  test('lease_lost_early: refused while the lease was held', () => {
    const history = new History().publish('a', ['a']);
    const delivery = history.deliver('a', 1, 10);
    history.settle('ack', delivery, 20, 'refused');
    history.settle('ack', history.deliver('a', 2, 1100), 1200);
    expect(history.kinds()).toEqual(['lease_lost_early']);
  });

  test('attempts_exceeded: one more than the maximum', () => {
    const history = new History().publish('a', ['a']);
    for (const attempt of [1, 2, 3]) history.deliver('a', attempt, attempt * 2000);
    history.settle('ack', history.deliver('a', 4, 9000), 9100);
    expect(history.kinds()).toEqual(['attempts_exceeded']);
  });
});
