// Hostile endpoints against real listeners: goal, that none of them is reached; method, a server on every address of this
// machine, URLs and names that lead there, and a policy that opens nothing. That they would lead there is shown as well,
// with a policy that opens it.
import type { LookupAddress } from 'node:dns';
import { networkInterfaces } from 'node:os';
import { describe, expect, test } from 'vitest';
import { createEgressPolicy, type EgressPolicy } from '#runtime/egress.ts';
import { type RawEndpoint, rawEndpoint } from '#test/support/raw-endpoint.ts';
import { EndpointClient, type EndpointResult } from '../../apps/worker/endpoint-client.ts';

const hasIpv6 = Object.values(networkInterfaces())
  .flat()
  .some((each) => each?.address === '::1');

const v4 = (address: string): LookupAddress => ({ address, family: 4 });
const v6 = (address: string): LookupAddress => ({ address, family: 6 });

/** Names as somebody's DNS server may answer them. */
const NAMES: Readonly<Record<string, readonly LookupAddress[]>> = {
  'loopback.example': [v4('127.0.0.1')],
  'loopback.example.': [v4('127.0.0.1')],
  'other-loopback.example': [v4('127.1.2.3')],
  'unspecified.example': [v4('0.0.0.0')],
  'loopback6.example': [v6('::1')],
  'mapped.example': [v6('::ffff:127.0.0.1')],
  'both.example': [v4('127.0.0.1'), v6('::1')],
  'many.example': [v4('10.0.0.1'), v4('127.0.0.1'), v4('169.254.169.254')],
  'xn--bcher-kva.example': [v4('127.0.0.1')],
  'metadata.google.internal': [v4('127.0.0.1')],
  localhost: [v4('127.0.0.1'), v6('::1')],
  'localhost.': [v4('127.0.0.1'), v6('::1')],
};

/** With PORT for the listener's. The second: whether it leads there where everything of this machine is open. */
const URLS: readonly (readonly [url: string, leadsThere: 'there' | 'there by IPv6' | 'nowhere'])[] =
  [
    // spellings of 127.0.0.1
    ['http://127.0.0.1:PORT/', 'there'],
    ['HTTP://127.0.0.1:PORT/', 'there'],
    ['http://127.0.0.1.:PORT/', 'there'],
    ['http://127.1:PORT/', 'there'],
    ['http://127.0.1:PORT/', 'there'],
    ['http://2130706433:PORT/', 'there'],
    ['http://0x7f000001:PORT/', 'there'],
    ['http://0x7f.0.0.1:PORT/', 'there'],
    ['http://0x7F.1:PORT/', 'there'],
    ['http://017700000001:PORT/', 'there'],
    ['http://0177.0.0.01:PORT/', 'there'],
    ['http://0177.0x0.0.1:PORT/', 'there'],
    ['http://%31%32%37%2e0.0.1:PORT/', 'there'],
    ['http://①②⑦.⓪.⓪.①:PORT/', 'there'],
    ['http://127。0。0。1:PORT/', 'there'],
    ['http://１２７．０．０．１:PORT/', 'there'],
    // others of this machine
    ['http://127.255.255.254:PORT/', 'there'],
    ['http://0.0.0.0:PORT/', 'there'],
    ['http://0:PORT/', 'there'],
    ['http://0x0:PORT/', 'there'],
    ['http://[::1]:PORT/', 'there by IPv6'],
    ['http://[0:0:0:0:0:0:0:1]:PORT/', 'there by IPv6'],
    ['http://[0000::0001]:PORT/', 'there by IPv6'],
    ['http://[::]:PORT/', 'there by IPv6'],
    ['http://[::ffff:127.0.0.1]:PORT/', 'there by IPv6'],
    ['http://[::FFFF:7F00:1]:PORT/', 'there by IPv6'],
    ['http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/', 'there by IPv6'],
    ['http://[::ffff:0.0.0.0]:PORT/', 'there by IPv6'],
    ['http://[::127.0.0.1]:PORT/', 'nowhere'],
    ['http://[64:ff9b::127.0.0.1]:PORT/', 'nowhere'],
    ['http://[2002:7f00:1::]:PORT/', 'nowhere'],
    ['http://[::1%25lo]:PORT/', 'nowhere'],
    // names
    ['http://localhost:PORT/', 'there'],
    ['http://LOCALHOST:PORT/', 'there'],
    ['http://LocalHost.:PORT/', 'there'],
    ['http://loopback.example:PORT/', 'there'],
    ['http://LOOPBACK.example.:PORT/', 'there'],
    ['http://other-loopback.example:PORT/', 'there'],
    ['http://unspecified.example:PORT/', 'there'],
    ['http://loopback6.example:PORT/', 'there by IPv6'],
    ['http://mapped.example:PORT/', 'there by IPv6'],
    ['http://both.example:PORT/', 'there'],
    ['http://many.example:PORT/', 'there'],
    ['http://bücher.example:PORT/', 'there'],
    ['http://metadata.google.internal:PORT/computeMetadata/v1/', 'there'],
    // what hides the host
    ['http://example.com@127.0.0.1:PORT/', 'nowhere'],
    ['http://example.com:80@127.0.0.1:PORT/', 'nowhere'],
    ['http://example.com\\@127.0.0.1:PORT/', 'nowhere'],
    ['http://127.0.0.1\\@example.com:PORT/', 'nowhere'],
    ['http:\\\\127.0.0.1:PORT\\', 'nowhere'],
    ['http:127.0.0.1:PORT/', 'nowhere'],
    ['http:///127.0.0.1:PORT/', 'nowhere'],
    ['http://127.0.0.1:PORT/#@example.com/', 'nowhere'],
    ['\thttp://127.0.0.1:PORT/', 'nowhere'],
    ['http://127.0.0.1\n:PORT/', 'nowhere'],
    ['https://127.0.0.1:PORT/', 'there'],
    ['ftp://127.0.0.1:PORT/', 'nowhere'],
    ['gopher://127.0.0.1:PORT/_POST%20/', 'nowhere'],
    ['file:///etc/hosts', 'nowhere'],
  ];

async function listenEverywhere(): Promise<RawEndpoint> {
  const answer = 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n';
  return rawEndpoint((socket) => socket.on('data', () => socket.write(answer)), {
    host: hasIpv6 ? '::' : '0.0.0.0',
  });
}

const resolver = async (hostname: string): Promise<LookupAddress[]> => {
  const addresses = NAMES[hostname];
  if (addresses === undefined) throw Object.assign(new Error('none'), { code: 'ENOTFOUND' });
  return [...addresses];
};

async function post(policy: EgressPolicy, url: string): Promise<EndpointResult> {
  await using client = new EndpointClient({ policy });
  return await client.send({ url, headers: {}, body: 'secret', timeoutMs: 5000 });
}

test('there are at least 40 of them', () => {
  expect(URLS.length).toBeGreaterThanOrEqual(40);
});

describe.each(URLS)('%s', (pattern, leads) => {
  test('is not reached', async () => {
    await using listener = await listenEverywhere();
    const url = pattern.replace('PORT', String(listener.port));
    const result = await post(createEgressPolicy([], { resolver }), url);
    expect(result).toMatchObject({
      kind: 'failure',
      error: expect.stringMatching(/^endpoint (not allowed|must|is no URL)/),
    });
    expect(listener.sockets).toHaveLength(0);
  });

  test.runIf(leads === 'there' || (leads === 'there by IPv6' && hasIpv6))(
    'would lead there',
    async () => {
      await using listener = await listenEverywhere();
      const url = pattern.replace('PORT', String(listener.port));
      const everything = ['0.0.0.0/8', '127.0.0.0/8', '::1', '::'];
      await post(createEgressPolicy(everything, { resolver }), url);
      expect(listener.sockets.length).toBeGreaterThan(0);
    },
  );
});

test('a name that had a public address when it was set, and another when it is connected to, is not reached', async () => {
  await using listener = await listenEverywhere();
  const answers = [[v4('93.184.215.14')], [v4('127.0.0.1')]];
  const policy = createEgressPolicy([], { resolver: async () => answers.shift() ?? [] });
  const url = `http://rebind.example:${listener.port}/`;
  expect(policy.endpointFault(url)).toBeUndefined();
  expect(await policy.resolve('rebind.example')).toEqual([v4('93.184.215.14')]);
  expect(await post(policy, url)).toMatchObject({
    error: 'endpoint not allowed: rebind.example is 127.0.0.1',
  });
  expect(listener.sockets).toHaveLength(0);
});

test('each new connection is checked anew, also to an origin that was allowed a moment ago', async () => {
  await using listener = await rawEndpoint((socket) => {
    socket.on('data', () => socket.end('HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n'));
  });
  const answers = [[v4('127.0.0.1')], [v4('127.0.0.2')]];
  const policy = createEgressPolicy(['127.0.0.1'], { resolver: async () => answers.shift() ?? [] });
  await using client = new EndpointClient({ policy });
  const request = {
    url: `http://rebind.example:${listener.port}/`,
    headers: {},
    body: 'x',
    timeoutMs: 5000,
  };
  expect(await client.send(request)).toMatchObject({ status: 200 });
  expect(await client.send(request)).toMatchObject({
    error: 'endpoint not allowed: rebind.example is 127.0.0.2',
  });
  expect(listener.sockets).toHaveLength(1);
});

test('of several addresses only the allowed ones are tried', async () => {
  await using listener = await listenEverywhere();
  const policy = createEgressPolicy(['127.0.0.2'], {
    resolver: async () => [v4('127.0.0.1'), v4('127.0.0.2'), v6('::1')],
  });
  expect(await post(policy, `http://mixed.example:${listener.port}/`)).toMatchObject({
    status: 200,
  });
  expect(listener.sockets.map((socket) => socket.localAddress?.replace('::ffff:', ''))).toEqual([
    '127.0.0.2',
  ]);
});

test('what was connected to is checked too: a look-up that lies does not get a byte of the request', async () => {
  await using listener = await listenEverywhere();
  const policy: EgressPolicy = {
    ...createEgressPolicy([]),
    lookup: (_hostname, _options, callback) => callback(null, [v4('127.0.0.1')]),
  };
  for (const scheme of ['http', 'https']) {
    expect(await post(policy, `${scheme}://liar.example:${listener.port}/`)).toMatchObject({
      error: 'endpoint not allowed: 127.0.0.1',
    });
  }
  expect(listener.received.join('')).toBe('');
});

test('an address is checked by the connection, even where nobody looked at the URL', async () => {
  await using listener = await listenEverywhere();
  const policy: EgressPolicy = { ...createEgressPolicy([]), endpointFault: () => undefined };
  for (const host of hasIpv6 ? ['127.0.0.1', '[::1]', '[::ffff:127.0.0.1]'] : ['127.0.0.1']) {
    expect(await post(policy, `http://${host}:${listener.port}/`)).toMatchObject({
      error: expect.stringMatching(/^endpoint not allowed: /),
    });
  }
  expect(listener.sockets).toHaveLength(0);
});
