import type { NewEvent } from '#db/publish.ts';

const dataBytes = 185;
const envelopeBytes = 40;
const texts = Array.from({ length: 1000 }, (_, index) => makeText(index));

function makeText(index: number): string {
  const order = {
    order_id: `o-${String(index).padStart(8, '0')}`,
    customer: `c-${index % 97}`,
    currency: 'EUR',
    total: 123.45,
    items: [{ sku: `sku-${index % 13}`, quantity: 2, price: 61.72 }],
    note: '',
  };
  order.note = 'n'.repeat(dataBytes - JSON.stringify(order).length);
  return JSON.stringify(order);
}

/** The data of every event: JSON of 185 bytes, a thousand different ones. */
export function eventText(index: number): string {
  return texts[index % texts.length] ?? '';
}

/** What the API makes of an event before it calls the database. */
export function newEvents(count: number): NewEvent[] {
  return Array.from({ length: count }, (_, index) => {
    const data = eventText(index);
    return { type: 'order.created', source: '/bench', data, bytes: data.length + envelopeBytes };
  });
}

/** An event as a producer posts it. */
export function eventBody(index: number): string {
  return `{"type":"order.created","source":"/bench","data":${eventText(index)}}`;
}

export function batchBody(count: number): string {
  return `[${Array.from({ length: count }, (_, index) => eventBody(index)).join(',')}]`;
}
