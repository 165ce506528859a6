import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  binaryHeaders,
  dataHeaders,
  eventJson,
  type EventRow,
  traceHeaders,
} from '#runtime/cloudevents.ts';

const TRACEPARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';

function anEventRow(changes: Partial<EventRow> = {}): EventRow {
  return {
    event_id: '1234567890123456789',
    ce_id: null,
    source: null,
    type: 'order.created',
    subject: null,
    time: null,
    datacontenttype: null,
    dataschema: null,
    ordering_key: null,
    extensions: null,
    traceparent: null,
    tracestate: null,
    data: '{"total": 12}',
    ...changes,
  };
}

const full = anEventRow({
  ce_id: 'A-1',
  source: '/shop',
  subject: 'o-17',
  time: '2025-01-31T12:00:00Z',
  datacontenttype: 'application/vnd.shop+json; charset="utf-8"',
  dataschema: 'https://example.com/order.json',
  ordering_key: 'cust-9',
  extensions: '{"region":"eu west","priority":7,"test":false}',
  traceparent: TRACEPARENT,
  tracestate: 'a=1,b=2',
});

describe('structured', () => {
  test('an event with everything', () => {
    expect(JSON.parse(eventJson(full, 'orders'))).toEqual({
      specversion: '1.0',
      id: 'A-1',
      source: '/shop',
      type: 'order.created',
      subject: 'o-17',
      time: '2025-01-31T12:00:00Z',
      datacontenttype: 'application/vnd.shop+json; charset="utf-8"',
      dataschema: 'https://example.com/order.json',
      partitionkey: 'cust-9',
      region: 'eu west',
      priority: 7,
      test: false,
      traceparent: TRACEPARENT,
      tracestate: 'a=1,b=2',
      brokereventid: '1234567890123456789',
      data: { total: 12 },
    });
  });

  test('an event with nothing has the broker’s id and the topic’s source, and no data', () => {
    expect(eventJson(anEventRow({ data: null }), 'orders')).toBe(
      '{"specversion":"1.0","id":"1234567890123456789","source":"/topics/orders","type":"order.created",' +
        '"brokereventid":"1234567890123456789"}',
    );
  });

  test('data is the text that was published', () => {
    const data = '{ "a" : 1.0,\n"a": 1e2, "ü": "\\u00fc" }';
    expect(eventJson(anEventRow({ data }), 'orders')).toContain(`"data":${data}}`);
  });
});

describe('binary', () => {
  test('an event with everything', () => {
    expect(binaryHeaders(full, 'orders')).toEqual({
      'ce-specversion': '1.0',
      'ce-id': 'A-1',
      'ce-source': '/shop',
      'ce-type': 'order.created',
      'ce-subject': 'o-17',
      'ce-time': '2025-01-31T12:00:00Z',
      'ce-dataschema': 'https://example.com/order.json',
      'ce-partitionkey': 'cust-9',
      'ce-region': 'eu%20west',
      'ce-priority': '7',
      'ce-test': 'false',
      'ce-traceparent': TRACEPARENT,
      'ce-tracestate': 'a=1,b=2',
      'ce-brokereventid': '1234567890123456789',
      'content-type': 'application/vnd.shop+json; charset="utf-8"',
      traceparent: TRACEPARENT,
      tracestate: 'a=1,b=2',
    });
  });

  test('an event with nothing', () => {
    expect(binaryHeaders(anEventRow({ data: null }), 'orders')).toEqual({
      'ce-specversion': '1.0',
      'ce-id': '1234567890123456789',
      'ce-source': '/topics/orders',
      'ce-type': 'order.created',
      'ce-brokereventid': '1234567890123456789',
    });
  });

  // HTTP binding 1.0.2, section 3.1.3.2; the first is its own example
  test.each([
    ['Euro € 😀', 'Euro%20%E2%82%AC%20%F0%9F%98%80'],
    ['say "hi"', 'say%20%22hi%22'],
    ['100%', '100%25'],
    ['%41', '%2541'],
    ['a\r\nx-evil: 1', 'a%0D%0Ax-evil:%201'],
    ['tab\tNUL\0DEL\u007f', 'tab%09NUL%00DEL%7F'],
    ['ÿ\u0080\u00a0', '%C3%BF%C2%80%C2%A0'],
    ['lone \ud83d half', 'lone%20%EF%BF%BD%20half'],
    ["!#$&'()*+,-./:;<=>?@[\\]^_`{|}~", "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"],
  ])('%j is encoded as %j', (subject, encoded) => {
    expect(binaryHeaders(anEventRow({ subject }), 'orders')['ce-subject']).toBe(encoded);
  });

  test('whatever an event holds, its headers are printable ASCII and say the same when they are decoded', () => {
    const text = fc.string({ unit: 'binary', maxLength: 30 });
    fc.assert(
      fc.property(text, text, text, text, text, (source, subject, id, key, extension) => {
        const event = anEventRow({
          source,
          subject,
          ce_id: id,
          ordering_key: key,
          extensions: JSON.stringify({ ext1: extension }),
          datacontenttype: `text/plain; title="${subject}"`,
          traceparent: source,
          tracestate: key,
        });
        const headers = binaryHeaders(event, 'orders');
        expect(Object.entries(headers).join('')).toMatch(/^[ -~]*$/);
        expect(
          ['ce-source', 'ce-subject', 'ce-id', 'ce-partitionkey', 'ce-ext1'].map((name) =>
            decodeURIComponent(headers[name]!),
          ),
        ).toEqual([source, subject, id, key, extension]);
      }),
    );
  });

  test('an extension cannot take the place of an attribute, nor be a header that is none', () => {
    const extensions = JSON.stringify({
      id: 'forged',
      type: 'forged',
      brokereventid: 'forged',
      'x\r\ny': 'forged',
      Upper: 'forged',
      __proto__: null,
      nested: { a: 1 },
      nothing: null,
      good: 'yes',
    });
    const headers = binaryHeaders(anEventRow({ extensions }), 'orders');
    expect(Object.values(headers)).not.toContain('forged');
    expect(Object.keys(headers).toSorted()).toEqual([
      'ce-brokereventid',
      'ce-good',
      'ce-id',
      'ce-source',
      'ce-specversion',
      'ce-type',
      'content-type',
    ]);
  });
});

test('content-type is what the producer said, and JSON for data of no said type', () => {
  expect(dataHeaders({ datacontenttype: null, data: '1' })).toEqual({
    'content-type': 'application/json',
  });
  expect(dataHeaders({ datacontenttype: 'text/xml', data: null })).toEqual({
    'content-type': 'text/xml',
  });
  expect(dataHeaders({ datacontenttype: null, data: null })).toEqual({});
  // with its own syntax, but no line end and no byte that is not ASCII
  expect(dataHeaders({ datacontenttype: 'text/plain; title="100% é\r\n"', data: '1' })).toEqual({
    'content-type': 'text/plain; title="100% %C3%A9%0D%0A"',
  });
});

test('a tracestate without a traceparent is not passed on', () => {
  expect(traceHeaders({ traceparent: null, tracestate: 'a=1' })).toEqual({});
  expect(traceHeaders({ traceparent: TRACEPARENT, tracestate: null })).toEqual({
    traceparent: TRACEPARENT,
  });
});
