import { sql } from 'kysely';
import type { Database } from './client.ts';
import { type Lease, publishedAtMs } from './lease.ts';

/** What became of one leased event. */
export interface Settlement {
  readonly lease: Lease;
  /** `deferred`: the receiver asked for `delayMs`; costs no attempt, but from the tenth on it is a nack. */
  readonly outcome: 'acked' | 'nacked' | 'released' | 'rejected' | 'deferred';
  /** Milliseconds until it is due again; a nack without it: the subscription's backoff. */
  readonly delayMs?: number | undefined;
  readonly error?: string | undefined;
  /** Of a push delivery, which is written as an attempt of its own. */
  readonly answer?: SettledAnswer | undefined;
}

/** What a push delivery brought back. */
export interface SettledAnswer {
  /** HTTP status; null where there was no answer. */
  readonly status: number | null;
  readonly durationMs: number;
  /** The first bytes of the answer's body; null for none. */
  readonly response: Buffer | null;
}

/** `dead`: nacked for the last time, or rejected. `lease_lost`: nothing was changed. */
export type SettleResult = 'acked' | 'nacked' | 'released' | 'deferred' | 'dead' | 'lease_lost';

interface SettleRow {
  element: number;
  outcome: Exclude<SettleResult, 'lease_lost'>;
  lost: number[];
  events: number;
  /** By the database's clock, in milliseconds since 1970. */
  now_ms: number;
}

/** Events of one publish that were acked together, for the first time. */
export interface Acked {
  readonly events: number;
  /** From their publish to here, by the database's clock. */
  readonly seconds: number;
  /** Of one of them, among the settlements. */
  readonly position: number;
}

export interface Settled {
  /** In the order of the settlements. */
  readonly results: SettleResult[];
  readonly acked: readonly Acked[];
}

interface Element {
  readonly settlement: Settlement;
  readonly ordinals: number[];
  readonly positions: number[];
}

/** `settleTimed`, without the times. */
export async function settle(
  db: Database,
  topicId: number,
  subscriptionId: number,
  settlements: readonly Settlement[],
): Promise<SettleResult[]> {
  return (await settleTimed(db, topicId, subscriptionId, settlements)).results;
}

/**
 * Settles events of one subscription in one call; the answers are in the order of the settlements. An event that is named
 * more than once is settled as it was named first; a repeated ack of an acked one succeeds, everything else has lost its lease.
 */
export async function settleTimed(
  db: Database,
  topicId: number,
  subscriptionId: number,
  settlements: readonly Settlement[],
): Promise<Settled> {
  const { elements, repeats } = groupByEntry(settlements);
  const answers = elements.map((each) => each.settlement.answer);
  const isPush = answers.some((answer) => answer !== undefined);
  const { rows } =
    await sql<SettleRow>`select element, outcome, lost, cardinality(settled) as events,
      extract(epoch from clock_timestamp())::float8 * 1000 as now_ms from broker.settle(${topicId}, ${subscriptionId},
    ${elements.map((each) => each.settlement.lease.publish_id)}::bigint[],
    ${elements.map((each) => each.settlement.lease.entry_id)}::bigint[],
    ${elements.map((each) => each.settlement.lease.generation)}::int[],
    ${elements.map((each) => each.settlement.lease.retention_class)}::smallint[],
    ${elements.map((each) => `{${each.ordinals.join(',')}}`)}::text[],
    ${elements.map((each) => each.settlement.outcome)}::text[],
    ${elements.map((each) => each.settlement.delayMs ?? null)}::bigint[],
    ${elements.map((each) => each.settlement.error ?? null)}::text[],
    ${isPush ? answers.map((each) => each?.status ?? null) : null}::int[],
    ${isPush ? answers.map((each) => each?.durationMs ?? null) : null}::int[],
    ${isPush ? answers.map((each) => each?.response ?? null) : null}::bytea[])`.execute(db);
  const results = Array.from<SettleResult>({ length: settlements.length }).fill('lease_lost');
  for (const row of rows) {
    const element = elements[row.element - 1];
    element?.ordinals.forEach((ordinal, index) => {
      results[element.positions[index] ?? -1] = row.lost.includes(ordinal)
        ? 'lease_lost'
        : row.outcome;
    });
  }
  for (const [position, first] of repeats) {
    const acked = results[first] === 'acked' && settlements[position]?.outcome === 'acked';
    results[position] = acked ? 'acked' : 'lease_lost';
  }
  return { results, acked: ackedOf(rows, elements) };
}

function ackedOf(rows: readonly SettleRow[], elements: readonly Element[]): Acked[] {
  const acked: Acked[] = [];
  for (const { element, outcome, events, now_ms: now } of rows) {
    const settled = elements[element - 1];
    if (settled === undefined || outcome !== 'acked' || events === 0) continue;
    const seconds = (now - publishedAtMs(settled.settlement.lease.publish_id)) / 1000;
    acked.push({ events, seconds, position: settled.positions[0] ?? 0 });
  }
  return acked;
}

/**
 * One element per entry, generation, outcome, delay and error: an entry of 100 that is acked whole is one element. A push
 * delivery is one by itself.
 */
function groupByEntry(settlements: readonly Settlement[]) {
  const elements = new Map<string, Element>();
  const firsts = new Map<string, number>();
  const repeats: [position: number, first: number][] = [];
  settlements.forEach((settlement, position) => {
    const { lease, outcome, delayMs, error, answer } = settlement;
    const entry = `${lease.publish_id}-${lease.entry_id}-${lease.generation}`;
    const event = `${entry}-${lease.ordinal}`;
    const first = firsts.get(event);
    if (first !== undefined) {
      repeats.push([position, first]);
      return;
    }
    firsts.set(event, position);
    const key =
      answer === undefined ? `${entry} ${outcome} ${delayMs ?? ''} ${error ?? ''}` : event;
    const element = elements.get(key) ?? { settlement, ordinals: [], positions: [] };
    element.ordinals.push(lease.ordinal);
    element.positions.push(position);
    elements.set(key, element);
  });
  for (const element of elements.values()) sortTogether(element);
  return { elements: [...elements.values()], repeats };
}

/** Ordinals ascending, as entries hold them: then a whole entry is recognised by comparing two arrays. */
function sortTogether(element: Element): void {
  const order = element.ordinals
    .map((_, index) => index)
    .toSorted((a, b) => (element.ordinals[a] ?? 0) - (element.ordinals[b] ?? 0));
  const ordinals = order.map((index) => element.ordinals[index] ?? 0);
  const positions = order.map((index) => element.positions[index] ?? 0);
  element.ordinals.splice(0, ordinals.length, ...ordinals);
  element.positions.splice(0, positions.length, ...positions);
}
