import { randomBytes } from 'node:crypto';
import { Webhook } from 'standardwebhooks';
import { expect, test } from 'vitest';
import { sign } from '../../apps/worker/signature.ts';

test('signs the test vector of Standard Webhooks', () => {
  const secret = Buffer.from('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64');
  const id = 'msg_p5jXN8AQM9LWM0D4loKWxJek';
  const signed = { id, timestamp: 1_614_265_330, body: '{"test": 2432232314}' };
  expect(sign(secret, signed)).toBe('v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=');
});

test.each([
  ['JSON', '{"total":12}'],
  ['characters of several bytes', '{"name":"Zoë 😀 日本"}'],
  ['spaces and line ends', '{ "a" :\r\n 1.0 }\n'],
  ['an empty body', ''],
])('the standardwebhooks package accepts %s, as text and as bytes', (_what, body) => {
  const secret = randomBytes(32);
  const timestamp = Math.floor(Date.now() / 1000);
  const webhook = new Webhook(`whsec_${secret.toString('base64')}`);
  for (const sent of [body, Buffer.from(body)]) {
    const headers = {
      'webhook-id': '1234567890123456789',
      'webhook-timestamp': String(timestamp),
      'webhook-signature': sign(secret, { id: '1234567890123456789', timestamp, body: sent }),
    };
    expect(webhook.verify(Buffer.from(body), headers)).toEqual(
      body === '' ? undefined : JSON.parse(body),
    );
    expect(() => webhook.verify(`${body} `, headers)).toThrow('No matching signature');
  }
});
