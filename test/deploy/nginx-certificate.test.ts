/**
 * Goal: what deploy/certificate/install puts into SECRETS_DIR is a pair that nginx can serve for the names, or nothing is changed.
 *
 * Method: the script with certificates of the test, in folders of the test. nginx-acme.test.ts has it called by certbot.
 */
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import { type Ended, runToEnd, whyNoCertbot } from '#test/support/nginx-acme.ts';
import { type SelfSigned, selfSigned } from '#test/support/self-signed.ts';

const scripts = join(import.meta.dirname, '../../deploy/certificate');
const name = 'broker.test';
const missing = await whyNoCertbot();
if (missing !== undefined) console.log(`deploy/certificate is not tested: ${missing}`);

let dir: string;
let secrets: string;
let live: string;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'broker-certificate-'));
  secrets = join(dir, 'secrets');
  live = join(dir, 'live');
  await mkdir(live);
});

afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

async function call(command: string, args: readonly string[], env = {}): Promise<Ended> {
  return runToEnd(command, args, { SECRETS_DIR: secrets, ...env });
}

async function install(...command: string[]): Promise<Ended> {
  return call(join(scripts, 'install'), [live, name, ...command]);
}

async function got({ cert, key }: SelfSigned): Promise<void> {
  await writeFile(join(live, 'fullchain.pem'), cert);
  await writeFile(join(live, 'privkey.pem'), key);
}

/** What SECRETS_DIR has, by name; nothing when it is not there. */
async function installed(): Promise<Record<string, string>> {
  const names = await readdir(secrets).catch(() => []);
  const read = names.map(async (each) => [each, await readFile(join(secrets, each), 'utf8')]);
  return Object.fromEntries(await Promise.all(read)) as Record<string, string>;
}

function asInstalled({ cert, key }: SelfSigned): Record<string, string> {
  return { tls_fullchain: cert, tls_privkey: key };
}

describe.skipIf(missing !== undefined)('deploy/certificate/install', () => {
  test('puts both where nobody else comes, readable for the containers, and calls the command', async () => {
    const pair = selfSigned({ names: [name] });
    await got(pair);
    const { code, output } = await install('echo', 'two words', 'told');
    expect(code, output).toBe(0);
    expect(output).toContain('\ntwo words told\n');
    expect(await installed()).toEqual(asInstalled(pair));
    expect((await stat(secrets)).mode & 0o777).toBe(0o700);
    for (const file of ['tls_fullchain', 'tls_privkey'])
      expect((await stat(join(secrets, file))).mode & 0o777, file).toBe(0o444);
  });

  test('a renewed one goes into the same files, for they may be mounted', async () => {
    await got(selfSigned({ names: [name] }));
    await install('true');
    const inodes = async (): Promise<number[]> =>
      Promise.all(
        ['tls_fullchain', 'tls_privkey'].map(async (file) => (await stat(join(secrets, file))).ino),
      );
    const before = await inodes();
    const renewed = selfSigned({ names: [name] });
    await got(renewed);
    expect(await install('true')).toMatchObject({ code: 0 });
    expect(await installed()).toEqual(asInstalled(renewed));
    expect(await inodes()).toEqual(before);
  });

  const other = selfSigned({ names: [name] });
  const hour = 3_600_000;
  test.each([
    ['a key of another certificate', { ...selfSigned({ names: [name] }), key: other.key }, 'fit'],
    ['a certificate for another name', selfSigned({ names: ['other.test'] }), `not for ${name}`],
    [
      'one that has expired',
      selfSigned({ names: [name], validTo: new Date(Date.now() - hour) }),
      'has expired',
    ],
    ['a file that is no certificate', { ...other, cert: 'nothing' }, 'has no certificate'],
    ['a file that is no key', { ...other, key: 'nothing' }, 'has no key'],
  ])('%s is refused, and what was there stays', async (_what, pair, words) => {
    const before = selfSigned({ names: [name] });
    await got(before);
    await install('true');
    await got(pair);
    const { code, output } = await install('echo', 'told');
    expect([code, output]).toEqual([1, expect.stringContaining(words)]);
    expect(output).not.toContain('told');
    expect(await installed()).toEqual(asInstalled(before));
  });

  test('a folder that is open to others is refused', async () => {
    await mkdir(secrets);
    await chmod(secrets, 0o755);
    await got(selfSigned({ names: [name] }));
    const { code, output } = await install('true');
    expect([code, output]).toEqual([1, expect.stringContaining(`chmod 700 ${secrets}`)]);
    expect(await installed()).toEqual({});
  });

  test('a command that fails is said, and called again the next time', async () => {
    const pair = selfSigned({ names: [name] });
    await got(pair);
    const { code, output } = await install('false');
    expect([code, output]).toEqual([1, expect.stringContaining("'false' failed (1)")]);
    expect(await installed()).toEqual(asInstalled(pair));
    const again = await install('echo', 'told');
    expect([again.code, again.output]).toEqual([0, expect.stringContaining('\ntold\n')]);
  });

  // a mount namespace makes one of the two files unwritable, for root as well
  test.skipIf(process.getuid?.() !== 0)(
    'when the second file cannot be written, the first is put back',
    async () => {
      const before = selfSigned({ names: [name] });
      await got(before);
      await install('true');
      await got(selfSigned({ names: [name] }));
      const mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"';
      const fixed = join(secrets, 'tls_fullchain');
      const args = ['--mount', 'sh', '-c', mount, fixed, join(scripts, 'install'), live, name];
      const { code, output } = await call('unshare', [...args, 'echo', 'told']);
      expect([code, output]).toEqual([1, expect.stringContaining('nothing was changed')]);
      expect(output).not.toContain('told');
      expect(await installed()).toEqual(asInstalled(before));
    },
  );

  test.each([
    [[], 'deploy/certificate/install LIVE_DIR'],
    [['live', name], 'deploy/certificate/install LIVE_DIR'],
  ])('%o shows how it is called', async (args, words) => {
    const ended = await call(join(scripts, 'install'), args);
    expect(ended).toEqual({ code: 64, output: expect.stringContaining(words) });
  });
});

describe.skipIf(missing !== undefined)('deploy/certificate/thumbprint', () => {
  test('is that of RFC 7638', async () => {
    // section 3.1; `alg` and `kid` do not count
    const modulus =
      '0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs' +
      'tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajr' +
      'n1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw';
    const key = { kty: 'RSA', n: modulus, e: 'AQAB', alg: 'RS256', kid: '2011-04-29' };
    await writeFile(join(dir, 'key.json'), JSON.stringify(key));
    const ended = await call(join(scripts, 'thumbprint'), [join(dir, 'key.json')]);
    expect(ended).toEqual({ code: 0, output: 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs\n' });
  });

  test.each(['{}', '[]', 'no JSON', '{"kty":"RSA"}', '{"kty":"oct"}'])(
    '%s is no key',
    async (content) => {
      await writeFile(join(dir, 'key.json'), content);
      const ended = await call(join(scripts, 'thumbprint'), [join(dir, 'key.json')]);
      expect(ended).toEqual({ code: 1, output: expect.stringContaining('is no RSA or EC key') });
    },
  );
});

describe.skipIf(missing !== undefined)('deploy/certificate/obtain', () => {
  test.each([
    [[], 'deploy/certificate/obtain [OPTION...]'],
    [[name, `ops@${name}`], 'deploy/certificate/obtain [OPTION...]'],
    [['*.broker.test', `ops@${name}`, 'true'], "DOMAIN is not valid: '*.broker.test'"],
    [[`${name},`, 'nobody', 'true'], "EMAIL is not valid: 'nobody'"],
    [['--server', 'http://acme.test', name, `ops@${name}`, 'true'], '--server is no https://'],
    [['--server'], '--server needs a value'],
    [['--serve', 'https://acme.test'], 'there is no option --serve'],
  ])('%o is refused before anything is done', async (args, words) => {
    const ended = await call(join(scripts, 'obtain'), args, { CERTBOT_DIR: join(dir, 'certbot') });
    expect(ended).toEqual({ code: 64, output: expect.stringContaining(words) });
    expect(await readdir(dir)).toEqual(['live']);
  });
});
