import type { Client } from './client.ts';
import { elementSpans, memberSpans, type Span, valueSpan } from './json-spans.ts';

/** An event as a consumer or the list of dead letters gets it. */
export interface SeenEvent {
  readonly id: string;
  readonly source: string;
  readonly type: string;
  readonly subject: string | undefined;
  /** The text of `data` as it stands in the answer. */
  readonly dataText: string;
}

export interface Message {
  readonly lease_id: string;
  readonly lease_expires_at: string;
  readonly delivery_attempt: number;
  readonly event_id: string;
  readonly event: SeenEvent;
}

export interface DeadLetter {
  readonly reason: string;
  readonly attempts: number;
  readonly event: SeenEvent;
}

/** One that has ended, of a push. */
export interface Attempt {
  readonly attempt: number;
  /** Of the answer; null where none came. */
  readonly status: number | null;
  readonly duration_ms: number | null;
}

export interface Nack {
  readonly lease_id: string;
  readonly delay_seconds?: number;
  readonly reason?: string;
  readonly dead_letter?: boolean;
}

export interface ReceiveOptions {
  readonly maxMessages: number;
  readonly waitSeconds: number;
  /** Closes the connection. */
  readonly signal?: AbortSignal;
}

/** Leases events of a subscription. */
export async function receive(
  client: Client,
  subscription: string,
  { maxMessages, waitSeconds, signal }: ReceiveOptions,
): Promise<Message[]> {
  const body = JSON.stringify({ max_messages: maxMessages, wait_seconds: waitSeconds });
  const options = { body, ...(signal === undefined ? {} : { signal }) };
  const { text } = await client.call('POST', `/subscriptions/${subscription}/receive`, options);
  return withDataText<Message>(text, 'messages');
}

/** Acks leases; the answer has those that had been lost. */
export async function ack(
  client: Client,
  subscription: string,
  leaseIds: readonly string[],
): Promise<Set<string>> {
  return settle(client, `/subscriptions/${subscription}/ack`, { lease_ids: leaseIds });
}

/** Nacks leases; the answer has those that had been lost. */
export async function nack(
  client: Client,
  subscription: string,
  leases: readonly Nack[],
): Promise<Set<string>> {
  return settle(client, `/subscriptions/${subscription}/nack`, { leases });
}

async function settle(client: Client, path: string, body: object): Promise<Set<string>> {
  const options = { body: JSON.stringify(body), expected: [409] };
  const { text } = await client.call('POST', path, options);
  const { failed } = JSON.parse(text) as { failed: { lease_id: string; code: string }[] };
  const others = failed.filter(({ code }) => code !== 'lease_lost');
  if (others.length > 0) throw new Error(`${path} was answered ${JSON.stringify(others)}`);
  return new Set(failed.map((each) => each.lease_id));
}

/** All dead letters of a subscription. */
export async function listDeadLetters(client: Client, subscription: string): Promise<DeadLetter[]> {
  const letters: DeadLetter[] = [];
  let query = '';
  do {
    const { text } = await client.call('GET', `/subscriptions/${subscription}/dlq${query}`);
    letters.push(...withDataText<DeadLetter>(text, 'items'));
    const { next_cursor: cursor } = JSON.parse(text) as { next_cursor: string | null };
    query = cursor === null ? '' : `?cursor=${encodeURIComponent(cursor)}`;
  } while (query !== '');
  return letters;
}

/** What the broker has written down of an event on its way to a subscription. */
export async function listAttempts(
  client: Client,
  subscription: string,
  { topic, eventId }: { readonly topic: string; readonly eventId: string },
): Promise<readonly Attempt[]> {
  const { text } = await client.call('GET', `/topics/${topic}/events/${eventId}/deliveries`);
  const { items } = JSON.parse(text) as {
    items: { readonly subscription: string; readonly history: readonly Attempt[] }[];
  };
  return items.find((item) => item.subscription === subscription)?.history ?? [];
}

/** The elements of a list in an answer, each with the text of its event's data. */
function withDataText<Element extends { readonly event: SeenEvent }>(
  text: string,
  list: string,
): Element[] {
  const elements = (JSON.parse(text) as Record<string, Element[]>)[list] ?? [];
  const spans = elementSpans(text, member(text, valueSpan(text), list));
  return elements.map((element, index) => {
    const data = member(text, member(text, spans[index] ?? valueSpan(text), 'event'), 'data');
    const { id, source, type, subject } = element.event;
    const dataText = text.slice(data.start, data.end);
    return { ...element, event: { id, source, type, subject, dataText } };
  });
}

function member(text: string, span: Span, name: string): Span {
  const found = memberSpans(text, span).get(name);
  if (found === undefined) throw new Error(`An answer has no ${name}: ${text.slice(0, 200)}`);
  return found;
}
