/**
 * Goal: a release is what its tag, CHANGELOG.md and package.json say, and nothing is signed, named or deployed by a name that can move.
 *
 * Method: the scripts of deploy/release, in a repository of their own.
 */
import { readFileSync } from 'node:fs';

import { afterEach, beforeEach, describe, expect, test } from 'vitest';

import {
  changelog,
  releaseImage as image,
  ReleaseRepository,
} from '#test/support/release-repository.ts';

let repository: ReleaseRepository;
beforeEach(async () => {
  repository = await ReleaseRepository.create();
});
afterEach(async () => repository[Symbol.asyncDispose]());

describe('check-version', () => {
  test('a tag that says what the files say is let through', async () => {
    expect(await repository.call('check-version', ['v1.2.3'])).toMatchObject({
      code: 0,
      stdout: '1.2.3\n',
    });
    await repository.put('CHANGELOG.md', changelog.replace('## 1.2.3', '## [1.2.3]'));
    expect(await repository.call('check-version', ['v1.2.3'])).toMatchObject({
      code: 0,
      stdout: '1.2.3\n',
    });
  });

  test.for(['1.2.3', 'v1.2', 'v1.2.3-rc.1', 'v01.2.3', 'v1.2.3;id', ''])(
    "the tag '%s' is none",
    async (tag) => {
      const { code, stdout, stderr } = await repository.call('check-version', [tag]);
      expect([code, stdout]).toEqual([1, '']);
      expect(stderr).toContain('a release is tagged vX.Y.Z');
    },
  );

  const newer = JSON.stringify({ version: '1.2.4' });
  test.for([
    ['package.json', newer, 'package.json says 1.2.4, the tag 1.2.3'],
    ['package-lock.json', newer, 'package-lock.json says 1.2.4, the tag 1.2.3'],
    ['CHANGELOG.md', changelog.replace('1.2.3', '1.2.4'), 'CHANGELOG.md is 1.2.4, the tag 1.2.3'],
    [
      'CHANGELOG.md',
      changelog.replace('2026-12-24', 'soon'),
      'CHANGELOG.md is 1.2.2, the tag 1.2.3',
    ],
    ['CHANGELOG.md', '# Changelog\n', 'no heading'],
    [
      'CHANGELOG.md',
      changelog.replace('Unreleased\n', 'Unreleased\n\n- Late.\n'),
      'Unreleased, which no notes would tell: - Late.',
    ],
  ])('%s that says something else stops it (%#)', async ([file, text, words]) => {
    await repository.put(file!, text!);
    const { code, stdout, stderr } = await repository.call('check-version', ['v1.2.3']);
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toContain(words);
  });
});

describe('notes', () => {
  test('are the section of the version, and no other', async () => {
    const { code, stdout } = await repository.call('notes', ['1.2.3']);
    expect(code).toBe(0);
    expect(stdout).toBe('### Added\n\n- A thing.\n\n### Fixed\n\n- Another.\n');
    expect((await repository.call('notes', ['1.2.2'])).stdout).toBe('- Older.\n');
    const later = '## 1.2.30 - 2027-01-01\n\n- Later.\n\n## 1.2.3 ';
    await repository.put('CHANGELOG.md', changelog.replace('## 1.2.3 ', later));
    expect((await repository.call('notes', ['1.2.3'])).stdout).toBe(stdout);
  });

  test('with an image they tell its digest and how it is checked', async () => {
    const env = { GITHUB_REPOSITORY: 'team/broker' };
    const { code, stdout } = await repository.call('notes', ['1.2.3', image], env);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^### Added/);
    expect(stdout).toContain(`\n    ${image}\n`);
    const identity =
      'https://github.com/team/broker/.github/workflows/release.yml@refs/tags/v1.2.3';
    expect(stdout).toContain(`\n    cosign verify --certificate-identity ${identity} `);
  });

  test.for([['1.2'], ['1.2.4'], ['1.2.30'], ['11.2.3'], ['1.2.3', 'broker:1.2.3']])(
    'there are none for %j',
    async (args) => {
      const env = { GITHUB_REPOSITORY: 'team/broker' };
      const { code, stderr } = await repository.call('notes', args, env);
      expect(code).toBe(1);
      expect(stderr).toMatch(/a version is X\.Y\.Z|says nothing about|a tag can be moved/);
    },
  );
});

describe('what is to be signed, named or deployed', () => {
  const env = { GITHUB_REPOSITORY: 'team/broker' };
  test.for([
    ['verify', ['1.2.3', 'registry.example/broker:1.2.3'], 'a tag can be moved'],
    ['verify', ['1.2.x', image], 'a version is X.Y.Z'],
    ['tag', ['1.2.3', 'registry.example/broker:1.2.3'], 'REPOSITORY@sha256:DIGEST'],
    ['build', ['Registry.example/Broker', '1.2.3'], 'in small letters'],
    ['build', ['registry.example/broker', 'latest'], 'a version is X.Y.Z'],
    ['activate', ['broker:1.2.3'], 'NAME@sha256:DIGEST'],
    ['deploy-by-ssh', ['1.2.3; id', image], 'a version is X.Y.Z'],
    ['deploy-by-ssh', ['1.2.3', 'broker:1.2.3'], 'NAME@sha256:DIGEST'],
    ['deploy-by-ssh', ['1.2.3', image], 'DEPLOY_HOST is not set'],
  ] as const)('%s refuses %j', async ([name, args, words]) => {
    const { code, stderr } = await repository.call(name, args, env);
    expect(code).toBe(1);
    expect(stderr).toContain(words);
  });

  test('an image without its revision is not built', async () => {
    await repository.commit();
    await repository.put('apps/new.ts', '');
    const { code, stderr } = await repository.call('build', ['registry.example/broker', '1.2.3']);
    expect(code).toBe(1);
    expect(stderr).toContain('changes that no commit has');
  });
});

describe('tag', () => {
  const digest = image.split('@')[1]!;
  const name = `${image.split('@')[0]}:1.2.3`;
  // Says what a registry would, out of the file `answer`; a name that is given makes the file `next` the answer.
  const registry = `#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >>calls
case "$*" in
*inspect*) cat answer; ! grep -q ERROR answer ;;
*create*) cp next answer ;;
esac
`;
  const tag = async (answer: string, next = digest) => {
    await repository.put('bin/docker', registry, 0o755);
    await repository.put('bin/answer', `${answer}\n`);
    await repository.put('bin/next', `${next}\n`);
    const env = { PATH: `${repository.dir}/bin:/usr/bin:/bin` };
    const ended = await repository.call('tag', ['1.2.3', image], env);
    const calls = readFileSync(`${repository.dir}/bin/calls`, 'utf8');
    const named = calls.match(/(?<=imagetools create ).*/g) ?? [];
    return { ...ended, named };
  };
  const notFound = `ERROR: ${name}: not found`;
  const other = `sha256:${'cd'.repeat(32)}`;

  test('a version that is not there gets the image', async () => {
    const { code, stdout, named } = await tag(notFound);
    expect([code, stdout]).toEqual([0, `${name} is ${digest}\n`]);
    expect(named).toEqual([`--tag ${name} ${image}`]);
  });

  test('a version that is this image already is left alone', async () => {
    expect(await tag(digest)).toMatchObject({ code: 0, named: [] });
  });

  test.for([
    ['another image has the name', other, digest, 'is another image already'],
    ['the registry does not answer', 'ERROR: connection refused', digest, 'does not say whether'],
  ])('where %s, nothing is named', async ([, answer, next, words]) => {
    const { code, stderr, named } = await tag(answer!, next);
    expect([code, named]).toEqual([1, []]);
    expect(stderr).toContain(words);
  });

  test('a name that has another digest afterwards is an error', async () => {
    const { code, stderr } = await tag(notFound, other);
    expect(code).toBe(1);
    expect(stderr).toContain('which was scanned and signed');
  });
});
