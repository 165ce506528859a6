// The part of the ledger that is about push finds what it is there for: one made-up history for each kind of violation, and
// for each thing that looks like one and is none.
import { describe, expect, test } from 'vitest';
import { checkLedger, type Findings } from '#test/support/ledger-check.ts';
import { Ledger, type LeaseEnd, type PushOutcome } from '#test/support/ledger.ts';

const accepted = 'accepted, and the worker lost its lease before it was acked';

/** What an endpoint saw of events that were published, and what the broker wrote down. */
class History {
  readonly ledger = new Ledger();
  readonly ends: LeaseEnd[] = [];

  publish(...ids: string[]): this {
    const operation = this.ledger.beginPublish(ids);
    this.ledger.endPublish(
      operation,
      ids.map((id) => ({ id, duplicate: false })),
    );
    return this;
  }

  push(eventId: string, attempt: number, outcome: PushOutcome = 'accepted'): this {
    const push = this.ledger.beginPush({ subscription: 's', eventId, tag: eventId, attempt });
    this.ledger.endPush(push, outcome);
    return this;
  }

  end(eventId: string, attempt: number, outcome: LeaseEnd['outcome'], error = 'made up'): this {
    this.ends.push({ subscription: 's', eventId, attempt, outcome, error });
    return this;
  }

  disrupt(): this {
    this.ledger.disrupt();
    return this;
  }

  check(dead: string[] = []): Findings {
    return checkLedger(this.ledger, {
      subscriptions: [],
      pushSubscriptions: ['s'],
      leaseEnds: this.ends,
      maxAttempts: 3,
      dead: new Map([['s', new Set(dead)]]),
    });
  }

  kinds(dead: string[] = []): string[] {
    return this.check(dead).violations.map(({ kind }) => kind);
  }
}

const published = (): History => new History().publish('a');

describe('histories of a broker that keeps its promises', () => {
  test('accepted and acked', () => {
    expect(published().push('a', 1).end('a', 1, 'acked').kinds()).toEqual([]);
  });

  test('refused and not answered, and tried again each time: these are no duplicates', () => {
    const history = published().push('a', 1, 'refused').push('a', 2, 'unknown').push('a', 3);
    history.end('a', 1, 'nacked').end('a', 2, 'nacked').end('a', 3, 'acked');
    const counts = { pushes: 3, refused_pushes: 1, unknown_pushes: 1, unseen_attempts: 0 };
    expect(history.check()).toMatchObject({ violations: [], duplicates: {}, counts });
  });

  test('a delay that the endpoint asked for costs no attempt', () => {
    const history = published().push('a', 1, 'refused').push('a', 1);
    expect(history.end('a', 1, 'deferred').end('a', 1, 'acked').kinds()).toEqual([]);
  });

  test('accepted by two, because the first worker was killed', () => {
    const history = published().push('a', 1).disrupt().push('a', 2);
    history.end('a', 1, 'lease_expired').end('a', 2, 'acked');
    expect(history.check()).toMatchObject({ violations: [], duplicates: { [accepted]: 1 } });
  });

  test('accepted from a worker that went on after its lease was taken, when another had it', () => {
    const history = published().disrupt().push('a', 2).push('a', 1);
    history.end('a', 1, 'lease_expired').end('a', 2, 'acked');
    expect(history.check()).toMatchObject({ violations: [], duplicates: { [accepted]: 1 } });
  });

  test('accepted too late, or released at the end of a drain, and again', () => {
    const late = published().push('a', 1).push('a', 2).end('a', 1, 'nacked').end('a', 2, 'acked');
    const duplicates = { 'accepted, and the answer was lost or too late': 1 };
    expect(late.check()).toMatchObject({ violations: [], duplicates });
    const drained = published().push('a', 1).push('a', 1);
    drained.end('a', 1, 'released').end('a', 1, 'acked');
    expect(drained.check()).toMatchObject({
      violations: [],
      duplicates: { 'accepted, and released by a worker that stopped': 1 },
    });
  });

  test('an answer that broke off may have been an ack', () => {
    expect(published().push('a', 1, 'unknown').end('a', 1, 'acked').kinds()).toEqual([]);
  });

  test('a lease of which the endpoint saw nothing', () => {
    const history = published().push('a', 2).end('a', 1, 'nacked').end('a', 2, 'acked');
    expect(history.check()).toMatchObject({ violations: [], counts: { unseen_attempts: 1 } });
  });

  test('a dead letter needs no ack', () => {
    expect(published().push('a', 1, 'refused').end('a', 1, 'dead').kinds(['a'])).toEqual([]);
  });
});

describe('violations', () => {
  test('lost: never pushed', () => expect(published().kinds()).toEqual(['lost']));

  test('vanished: pushed, and neither acked nor dead', () => {
    expect(published().push('a', 1, 'refused').end('a', 1, 'nacked').kinds()).toEqual(['vanished']);
  });

  test('unexpected: pushed, and never published', () => {
    const history = published().push('a', 1).end('a', 1, 'acked');
    expect(history.push('b', 1).end('b', 1, 'acked').kinds()).toEqual(['unexpected']);
  });

  test('unexplained_duplicate: pushed twice under one lease', () => {
    const history = published().push('a', 1).push('a', 1).end('a', 1, 'acked');
    expect(history.kinds()).toEqual(['unexplained_duplicate']);
  });

  test('false_ack: refused by the endpoint, or never there, and acked', () => {
    expect(published().push('a', 1, 'refused').end('a', 1, 'acked').kinds()).toEqual(['false_ack']);
    const history = published().push('a', 1, 'unknown').end('a', 1, 'nacked');
    expect(history.end('a', 2, 'acked').kinds()).toEqual(['false_ack']);
  });

  test('settled_twice: acked by the old lease too', () => {
    const history = published().push('a', 1).disrupt().push('a', 2);
    history.end('a', 1, 'lease_expired').end('a', 2, 'acked').end('a', 1, 'acked');
    expect(history.kinds()).toEqual(['settled_twice']);
  });

  test('lease_lost_early: taken from a worker that nobody had touched', () => {
    const history = published().push('a', 1).push('a', 2);
    history.end('a', 1, 'lease_expired').end('a', 2, 'acked');
    expect(history.kinds()).toEqual(['lease_lost_early']);
  });

  test('attempts_exceeded: one more than the maximum', () => {
    const history = published().push('a', 4).end('a', 4, 'acked');
    expect(history.kinds()).toContain('attempts_exceeded');
  });
});
