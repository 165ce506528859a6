import { Webhook } from 'standardwebhooks';
import { describe, expect, test } from 'vitest';
import type { ClaimedEvent } from '#db/claim.ts';
import { version } from '#runtime/version.ts';
import { buildRequest, type PushTarget } from '../../apps/worker/push-request.ts';

const secret = Buffer.from('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64');
const now = Math.floor(Date.now() / 1000);
const data = '{ "name" : "Zoë 😀",\n "n": 1.0 }';
const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';

function aClaimedEvent(changes: Partial<ClaimedEvent> = {}): ClaimedEvent {
  return {
    subscription_id: 3,
    publish_id: '100',
    entry_id: '7',
    generation: 2,
    attempt: 4,
    isolated: false,
    retention_class: 3,
    due_at: '2025-01-31T12:00:00Z',
    lease_expires_at: '2025-01-31T12:05:00Z',
    more: false,
    ordinal: 0,
    event_id: '1234567890123456789',
    published_at: '2025-01-31T12:00:00Z',
    ce_id: 'A 1',
    source: '/shop',
    type: 'order.created',
    subject: null,
    time: null,
    datacontenttype: null,
    dataschema: null,
    ordering_key: null,
    extensions: null,
    traceparent,
    tracestate: 'a=1',
    data,
    ...changes,
  };
}

function aTarget(changes: Partial<PushTarget> = {}): PushTarget {
  return {
    topic: 'orders',
    endpoint: 'https://example.com/hook?tenant=1',
    mode: 'cloudevents_binary',
    headers: {},
    timeoutMs: 15_000,
    secret,
    ...changes,
  };
}

const modes = ['cloudevents_binary', 'cloudevents_structured', 'raw'] as const;

describe.each(modes)('%s', (mode) => {
  const request = buildRequest(aClaimedEvent(), aTarget({ mode }), now);

  test('is signed so that the standardwebhooks package accepts it', () => {
    const webhook = new Webhook(secret.toString('base64'));
    expect(webhook.verify(request.body, request.headers)).toEqual(JSON.parse(String(request.body)));
    expect(request.headers).toMatchObject({
      'webhook-id': '1234567890123456789',
      'webhook-timestamp': String(now),
    });
  });

  test('says who sends, which attempt it is and to which trace it belongs', () => {
    expect(request).toMatchObject({
      url: 'https://example.com/hook?tenant=1',
      timeoutMs: 15_000,
      headers: {
        'user-agent': `event-broker/${version}`,
        'broker-delivery-attempt': '4',
        traceparent,
        tracestate: 'a=1',
      },
    });
  });

  test('holds the data byte for byte', () => {
    expect(Buffer.from(request.body).includes(Buffer.from(data))).toBe(true);
  });

  test('the subscription’s headers are sent, but none that is the broker’s, however it is spelled', () => {
    const own = buildRequest(aClaimedEvent(), aTarget({ mode }), now).headers;
    const headers = {
      Authorization: 'Bearer abc',
      'X-Tenant': '1',
      'Content-Type': 'text/forged',
      'USER-AGENT': 'forged',
      'Webhook-Signature': 'v1,forged',
      'WEBHOOK-ID': 'forged',
      'Broker-Delivery-Attempt': '999',
      'Ce-Id': 'forged',
      Traceparent: 'forged',
      Host: 'forged',
      'Content-Length': '1',
      'Proxy-Authorization': 'forged',
    };
    expect(buildRequest(aClaimedEvent(), aTarget({ mode, headers }), now).headers).toEqual({
      ...own,
      authorization: 'Bearer abc',
      'x-tenant': '1',
    });
  });
});

test('binary: the data is the body, and the attributes are headers', () => {
  const { body, headers } = buildRequest(aClaimedEvent(), aTarget(), now);
  expect(String(body)).toBe(data);
  expect(headers).toMatchObject({
    'ce-id': 'A%201',
    'ce-traceparent': traceparent,
    'content-type': 'application/json',
  });
});

test('structured: the event is the body', () => {
  const target = aTarget({ mode: 'cloudevents_structured' });
  const { body, headers } = buildRequest(aClaimedEvent(), target, now);
  expect(JSON.parse(String(body))).toMatchObject({ id: 'A 1', type: 'order.created', traceparent });
  expect(headers['content-type']).toBe('application/cloudevents+json; charset=utf-8');
  expect(Object.keys(headers).filter((name) => name.startsWith('ce-'))).toEqual([]);
});

test('raw: the data is the body, and nothing tells of CloudEvents', () => {
  const event = aClaimedEvent({ datacontenttype: 'application/vnd.shop+json' });
  const { body, headers } = buildRequest(event, aTarget({ mode: 'raw' }), now);
  expect(String(body)).toBe(data);
  expect(headers['content-type']).toBe('application/vnd.shop+json');
  expect(Object.keys(headers).filter((name) => name.startsWith('ce-'))).toEqual([]);
});

test('an event without data has an empty body where the data is the body', () => {
  for (const mode of ['cloudevents_binary', 'raw'] as const) {
    const request = buildRequest(aClaimedEvent({ data: null }), aTarget({ mode }), now);
    expect(request.body).toHaveLength(0);
    expect(request.headers).not.toHaveProperty('content-type');
  }
});
