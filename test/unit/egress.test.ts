import type { LookupAddress } from 'node:dns';
import { describe, expect, test } from 'vitest';
import { createEgressPolicy, EgressDenied, type EgressPolicy } from '#runtime/egress.ts';

const closed = createEgressPolicy([]);

describe('addresses', () => {
  test.each([
    '0.0.0.0',
    '0.255.255.255',
    '10.0.0.1',
    '100.64.0.1',
    '100.127.255.255',
    '127.0.0.1',
    '127.255.255.254',
    '169.254.169.254',
    '172.16.0.1',
    '172.31.255.255',
    '192.0.0.1',
    '192.0.2.1',
    '192.88.99.1',
    '192.168.0.1',
    '198.18.0.1',
    '198.19.255.255',
    '198.51.100.1',
    '203.0.113.1',
    '224.0.0.1',
    '239.255.255.255',
    '240.0.0.1',
    '255.255.255.255',
    '::',
    '::1',
    '0:0:0:0:0:0:0:1',
    '::127.0.0.1',
    '::10.0.0.1',
    '::ffff:127.0.0.1',
    '::FFFF:10.0.0.1',
    '::ffff:a9fe:a9fe',
    '0:0:0:0:0:ffff:0:0',
    '::ffff:0:127.0.0.1',
    '64:ff9b::1',
    '64:ff9b::8.8.8.8',
    '64:ff9b:1::1',
    '100::1',
    '2001::1',
    '2001:10::1',
    '2001:db8::1',
    '2002:7f00:1::1',
    '3fff::1',
    '5f00::1',
    'fc00::1',
    'fd12:3456::1',
    'fe80::1',
    'fe80::1%eth0',
    'fec0::1',
    'ff02::1',
    '2606:4700::1%eth0',
    // no addresses
    '',
    'localhost',
    '127.1',
    '010.0.0.1',
    '0x7f.0.0.1',
    '2130706433',
    '8.8.8.8 ',
    '[::1]',
    '1.2.3.4.5',
  ])('%s is denied', (address) => {
    expect(closed.isAllowed(address)).toBe(false);
  });

  test.each([
    '1.1.1.1',
    '8.8.8.8',
    '9.255.255.255',
    '11.0.0.0',
    '100.63.255.255',
    '100.128.0.0',
    '126.255.255.255',
    '128.0.0.0',
    '169.253.255.255',
    '172.15.255.255',
    '172.32.0.0',
    '192.0.1.0',
    '192.167.255.255',
    '198.17.255.255',
    '198.20.0.0',
    '223.255.255.255',
    '::ffff:8.8.8.8',
    '::ffff:808:808',
    '2001:200::1',
    '2001:4860:4860::8888',
    '2003::1',
    '2606:4700:4700::1111',
    '2a00:1450::1',
    '3ffe:ffff::1',
  ])('%s is allowed', (address) => {
    expect(closed.isAllowed(address)).toBe(true);
  });
});

describe('what is opened', () => {
  test('a range opens what lies in it, in every spelling, and nothing else', () => {
    const policy = createEgressPolicy(['127.0.0.0/8', '10.1.2.3', 'fd00:1::/32']);
    for (const address of [
      '127.0.0.1',
      '127.9.9.9',
      '::ffff:127.0.0.1',
      '::ffff:7f00:1',
      '10.1.2.3',
      '::ffff:10.1.2.3',
      'fd00:1::5',
      'fd00:0001:0:0::5',
      '8.8.8.8',
    ]) {
      expect(policy.isAllowed(address), address).toBe(true);
    }
    for (const address of ['::1', '10.1.2.4', '128.0.0.1%1', 'fd00:2::5', 'fe80::1', '0.0.0.0']) {
      expect(policy.isAllowed(address), address).toBe(false);
    }
  });

  test('::1 is opened by itself, and zones by nothing', () => {
    const policy = createEgressPolicy(['::1', 'fe80::/10', '::/0']);
    expect(policy.isAllowed('::1')).toBe(true);
    expect(policy.isAllowed('fe80::1')).toBe(true);
    expect(policy.isAllowed('fe80::1%lo')).toBe(false);
    expect(policy.isAllowed('127.0.0.1')).toBe(false);
  });

  test.each(['', 'localhost', '10.0.0.0/', '10.0.0.0/x', '10.0.0.0/8/8', '::ffff:10.0.0.0/104'])(
    '%j is refused, by name',
    (range) => {
      expect(() => createEgressPolicy([range])).toThrow(`${range} is no address`);
    },
  );

  test.each(['10.0.0.0/33', '::/129'])('%j is refused', (range) => {
    expect(() => createEgressPolicy([range])).toThrow('out of range');
  });
});

describe('endpoints', () => {
  test.each([
    ['', 'must be a URL'],
    ['example.com/hook', 'must be a URL'],
    ['/hook', 'must be a URL'],
    ['//example.com/hook', 'must be a URL'],
    ['http://', 'must be a URL'],
    ['http:///hook', 'must be a URL'],
    ['http:example.com', 'must be a URL'],
    ['https:/example.com', 'must be a URL'],
    ['ftp://example.com/', 'must be a URL'],
    ['file:///etc/passwd', 'must be a URL'],
    ['gopher://example.com:6379/_', 'must be a URL'],
    ['ws://example.com/', 'must be a URL'],
    ['javascript:alert(1)', 'must be a URL'],
    ['data:text/plain,x', 'must be a URL'],
    ['http://[fe80::1%25eth0]/', 'must be a URL'],
    ['http://1.2.3.4.5/', 'must be a URL'],
    ['http://0x100000000/', 'must be a URL'],
    ['http://a b/', 'white space'],
    [' http://example.com/', 'white space'],
    ['http://example.com/\n', 'white space'],
    ['http://exa\tmple.com/', 'white space'],
    ['http:\\\\example.com\\', 'backslashes'],
    ['http://example.com\\@127.0.0.1/', 'backslashes'],
    ['http://user:secret@example.com/', 'user name'],
    ['http://user@example.com/', 'user name'],
    ['http://@example.com/', 'user name'],
    ['http://:@example.com/', 'user name'],
    ['http://example.com/#top', 'fragment'],
    ['http://example.com/#', 'fragment'],
    ['http://example.com:22/', 'port'],
    ['http://example.com:0/', 'port'],
    ['https://example.com:1023/', 'port'],
    ['http://127.0.0.1/', '127.0.0.1'],
    ['http://127.1/', '127.0.0.1'],
    ['http://2130706433/', '127.0.0.1'],
    ['http://0x7f000001/', '127.0.0.1'],
    ['http://0x7f.1/', '127.0.0.1'],
    ['http://0177.0.0.01/', '127.0.0.1'],
    ['http://127.0.0.1./', '127.0.0.1'],
    ['http://%31%32%37.0.0.1/', '127.0.0.1'],
    ['http://①②⑦.0.0.1/', '127.0.0.1'],
    ['http://127。0。0。1/', '127.0.0.1'],
    ['http://0/', '0.0.0.0'],
    ['http://[::1]/', '::1'],
    ['http://[::]/', '::'],
    ['http://[::ffff:127.0.0.1]/', '::ffff:7f00:1'],
    ['http://[0:0:0:0:0:ffff:169.254.169.254]/', '::ffff:a9fe:a9fe'],
    [`http://example.com/${'a'.repeat(2030)}`, '2048 characters'],
  ])('%s: %s', (endpoint, fault) => {
    expect(closed.endpointFault(endpoint)).toMatch(/^must /);
    expect(closed.endpointFault(endpoint)).toContain(fault);
  });

  test.each([
    'http://example.com',
    'https://example.com/hook?a=b&c=d@e',
    'HTTPS://EXAMPLE.COM/Hook',
    'https://example.com:443/',
    'http://example.com:80/',
    'https://example.com:80/',
    'http://example.com:1024/',
    'http://example.com:65535/',
    'https://bücher.example/ü',
    'http://localhost:3000/',
    'http://receiver:8080/hook',
    'https://example.com./',
    'https://8.8.8.8/',
    'https://[2606:4700:4700::1111]/',
    `http://example.com/${'a'.repeat(2029)}`,
  ])('%s is good', (endpoint) => {
    expect(closed.endpointFault(endpoint)).toBeUndefined();
  });

  test('an address that is opened is good', () => {
    const policy = createEgressPolicy(['127.0.0.0/8']);
    expect(policy.endpointFault('http://127.1:9000/')).toBeUndefined();
    expect(policy.endpointFault('http://[::ffff:127.0.0.1]:9000/')).toBeUndefined();
    expect(policy.endpointFault('http://[::1]:9000/')).toContain('::1');
  });
});

const address4 = (address: string): LookupAddress => ({ address, family: 4 });
const address6 = (address: string): LookupAddress => ({ address, family: 6 });

/** A policy over a table of names, which counts its look-ups. */
function setUp(names: Readonly<Record<string, readonly LookupAddress[]>>, open: string[] = []) {
  const asked: string[] = [];
  const policy = createEgressPolicy(open, {
    resolver: async (hostname) => {
      asked.push(hostname);
      return [...(names[hostname] ?? [])];
    },
  });
  return { policy, asked };
}

type Looked = { readonly error: Error | null; readonly address: string | LookupAddress[] };

async function lookUp(policy: EgressPolicy, name: string, options = {}): Promise<Looked> {
  return new Promise((resolve) => {
    policy.lookup(name, options, (error, address) => resolve({ error, address }));
  });
}

describe('names', () => {
  const names = {
    good: [address4('8.8.8.8'), address6('2606:4700::1')],
    bad: [address4('10.0.0.1'), address6('fe80::1')],
    mixed: [address4('127.0.0.1'), address4('8.8.8.8'), address6('::1')],
    none: [],
    'metadata.google.internal': [address4('169.254.169.254')],
  };

  test('only the allowed addresses of a name are handed out', async () => {
    const { policy } = setUp(names);
    expect(await policy.resolve('good')).toEqual(names.good);
    expect(await policy.resolve('mixed')).toEqual([address4('8.8.8.8')]);
    expect(await lookUp(policy, 'mixed', { all: true })).toEqual({
      error: null,
      address: [address4('8.8.8.8')],
    });
  });

  test('a name with forbidden addresses only is denied, and says which', async () => {
    const { policy } = setUp(names);
    await expect(policy.resolve('bad')).rejects.toThrow(
      new EgressDenied('bad is 10.0.0.1, fe80::1'),
    );
    await expect(policy.resolve('metadata.google.internal')).rejects.toThrow(EgressDenied);
    await expect(policy.resolve('none')).rejects.toThrow(
      'endpoint not allowed: none is no address',
    );
    expect((await lookUp(policy, 'bad', { all: true })).error).toBeInstanceOf(EgressDenied);
  });

  test('an address is judged without a look-up', async () => {
    const { policy, asked } = setUp(names);
    expect(await policy.resolve('8.8.8.8')).toEqual([address4('8.8.8.8')]);
    expect(await policy.resolve('[2606:4700::1]')).toEqual([address6('2606:4700::1')]);
    await expect(policy.resolve('127.0.0.1')).rejects.toThrow(
      new EgressDenied('127.0.0.1').message,
    );
    await expect(policy.resolve('[::1]')).rejects.toThrow(EgressDenied);
    expect(asked).toEqual([]);
  });

  test('a socket may ask for one address, and for one family', async () => {
    const { policy } = setUp(names);
    expect((await lookUp(policy, 'good')).address).toBe('8.8.8.8');
    expect((await lookUp(policy, 'good', { family: 6 })).address).toBe('2606:4700::1');
    expect((await lookUp(policy, 'good', { family: 'IPv6' })).address).toBe('2606:4700::1');
    expect((await lookUp(policy, 'mixed', { family: 6 })).error).toMatchObject({
      code: 'ENOTFOUND',
    });
  });

  test('look-ups of one name at the same time are one, and each later one is new', async () => {
    const { policy, asked } = setUp(names);
    await Promise.all([
      policy.resolve('good'),
      policy.resolve('good'),
      lookUp(policy, 'good'),
      policy.resolve('mixed'),
    ]);
    expect(asked).toEqual(['good', 'mixed']);
    await policy.resolve('good');
    expect(asked).toEqual(['good', 'mixed', 'good']);
  });

  test('a look-up that fails, fails for all who wait, and is tried again by the next', async () => {
    let fails = true;
    const policy = createEgressPolicy([], {
      resolver: async () => {
        if (fails) throw Object.assign(new Error('no such name'), { code: 'ENOTFOUND' });
        return [address4('8.8.8.8')];
      },
    });
    const looked = await Promise.all([lookUp(policy, 'name'), lookUp(policy, 'name')]);
    expect(looked.map((each) => each.error)).toEqual([
      expect.objectContaining({ code: 'ENOTFOUND' }),
      expect.objectContaining({ code: 'ENOTFOUND' }),
    ]);
    await expect(policy.resolve('name')).rejects.toThrow('no such name');
    fails = false;
    expect(await policy.resolve('name')).toEqual([address4('8.8.8.8')]);
  });

  test('who resolves waits for a dead resolver only so long', async () => {
    const policy = createEgressPolicy([], {
      resolver: () => Promise.withResolvers<LookupAddress[]>().promise,
    });
    await expect(policy.resolve('dead', { timeoutMs: 20 })).rejects.toThrow(
      'no address of dead was found in 20 ms',
    );
  });

  test('so many may wait for one name, and the next are refused at once', async () => {
    const { promise, resolve } = Promise.withResolvers<LookupAddress[]>();
    const policy = createEgressPolicy([], { resolver: () => promise });
    const waiting = Array.from({ length: 10_000 }, () => lookUp(policy, 'slow'));
    expect((await lookUp(policy, 'slow')).error?.message).toContain('too many wait');
    resolve([address4('8.8.8.8')]);
    expect((await Promise.all(waiting)).every((each) => each.error === null)).toBe(true);
  });

  test('the system’s resolver knows /etc/hosts: localhost is denied in every spelling', async () => {
    for (const name of ['localhost', 'LOCALHOST', 'localhost.']) {
      await expect(closed.resolve(name), name).rejects.toThrow(/not allowed|ENOTFOUND/);
    }
    const opened = createEgressPolicy(['127.0.0.0/8', '::1']);
    expect((await opened.resolve('localhost')).length).toBeGreaterThan(0);
  });
});
