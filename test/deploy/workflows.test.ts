/**
 * Goal: what only runs on GitHub, or on an operator's machine, is not found to be wrong there first.
 *
 * Method: GitHub's own parser reads the workflows, and shellcheck every script that the project has and every step of a workflow.
 * Each is seen to complain about something that is wrong on purpose.
 */
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import {
  convertWorkflowTemplate,
  NoOperationTraceWriter,
  parseWorkflow,
} from '@actions/workflow-parser';
import { beforeAll, describe, expect, test } from 'vitest';

import { whyNotThere } from '#test/support/debian-package.ts';
import { endOf } from '#test/support/docker.ts';
import packageJson from '../../package.json' with { type: 'json' };

const top = join(import.meta.dirname, '../..');
const textOf = (file: string): string => readFileSync(join(top, file), 'utf8');
const workflows = globSync('.github/workflows/*.yml', { cwd: top }).toSorted();

/** What GitHub would say of a workflow: unknown keys, wrong types, expressions with names that are not there, needs of no job. */
async function complaints(name: string, content: string): Promise<string[]> {
  const { context, value } = parseWorkflow({ name, content }, new NoOperationTraceWriter());
  if (value !== undefined) await convertWorkflowTemplate(context, value);
  return context.errors.getErrors().map((error) => error.message);
}

describe('workflows', () => {
  test.for(workflows)('%s is one to GitHub', async (file) => {
    expect(await complaints(file, textOf(file))).toEqual([]);
  });

  test.for([
    ['an unknown key', 'runs-on:', 'run-on:'],
    ['an unknown context', 'vars.REGISTRY_USER', 'varz.REGISTRY_USER'],
    ['an expression that does not end', '|| github.token }}', '|| (github.token }}'],
    ['a job that is not there', 'needs: image', 'needs: imag'],
    ['an unknown permission', 'packages: write', 'packagez: write'],
    ['a permission that is none', 'id-token: write', 'id-token: admin'],
  ])('%s is found', async ([, right, wrong]) => {
    const content = textOf('.github/workflows/release.yml').replace(right!, wrong!);
    expect(content).toContain(wrong);
    expect(await complaints('release.yml', content)).not.toEqual([]);
  });
});

describe('Renovate', () => {
  interface Rule {
    readonly [key: string]: unknown;
    readonly matchUpdateTypes?: readonly string[];
    readonly matchManagers?: readonly string[];
    readonly matchPackageNames?: readonly string[];
  }
  const config = JSON.parse(textOf('.github/renovate.json')) as {
    readonly packageRules: readonly Rule[];
    readonly customManagers: readonly { managerFilePatterns: string[]; matchStrings: string[] }[];
  };

  test('rules match by something that there is, and say something', () => {
    const types = 'major minor patch digest pin pinDigest'.split(' ');
    const managers = 'npm github-actions dockerfile docker-compose custom.regex'.split(' ');
    const said = 'groupName allowedVersions enabled ignoreUnstable minimumReleaseAge'.split(' ');
    for (const rule of config.packageRules) {
      const keys = Object.keys(rule).filter((key) => key !== 'description');
      expect(types).toEqual(expect.arrayContaining([...(rule.matchUpdateTypes ?? [])]));
      expect(managers).toEqual(expect.arrayContaining([...(rule.matchManagers ?? [])]));
      expect(keys.some((key) => key.startsWith('match'))).toBe(true);
      const others = keys.filter((key) => !key.startsWith('match'));
      expect(others.length).toBeGreaterThan(0);
      expect(said).toEqual(expect.arrayContaining(others));
    }
  });

  test('packages that rules name are packages or images of ours', () => {
    const { dependencies, devDependencies } = packageJson;
    const images = textOf('docker-compose.yml') + textOf('deploy/Dockerfile');
    const names = config.packageRules.flatMap((rule) => rule.matchPackageNames ?? []);
    const strange = names.filter(
      (name) => !(name in { ...dependencies, ...devDependencies }) && !images.includes(`${name}:`),
    );
    expect(strange).toEqual([]);
  });

  test('the images of the tests are found where they are', () => {
    const [manager] = config.customManagers;
    const [pattern] = manager!.managerFilePatterns.map((each) => new RegExp(each.slice(1, -1)));
    const files = globSync('test/**/*.ts', { cwd: top }).filter((file) => pattern!.test(file));
    const found = files.flatMap((file) =>
      [...textOf(file).matchAll(new RegExp(manager!.matchStrings[0]!, 'g'))].map(
        ({ groups }) => groups!['depName'],
      ),
    );
    expect(new Set(found)).toEqual(new Set(['node', 'debian', 'postgres', 'nginx']));
  });
});

describe('shell scripts', () => {
  const scripts = globSync('{.ci,deploy}/**/*', { cwd: top })
    .filter((file) => !/\.\w+$|Dockerfile$/.test(file) || file.endsWith('.sh'))
    .filter((file) => !globSync(`${file}/*`, { cwd: top }).length)
    .filter((file) => /^#!\/(bin\/sh|usr\/bin\/env (ba)?sh)\b/.test(textOf(file)))
    .toSorted();
  const checks = ['--external-sources', '--severity=warning'];
  let missing: string | undefined;
  beforeAll(async () => {
    missing = await whyNotThere('shellcheck', 'shellcheck');
    if (missing !== undefined) console.log(missing);
  }, 300_000);

  test.for(scripts)('%s has nothing that shellcheck knows to be wrong', async (file, { skip }) => {
    if (missing !== undefined) skip(missing);
    const { code, stdout } = await endOf(['shellcheck', ...checks, join(top, file)]);
    expect(stdout).toBe('');
    expect(code).toBe(0);
  });

  test('there are some, and all of deploy/release are among them', () => {
    const release = globSync('deploy/release/*', { cwd: top });
    expect(release.length).toBeGreaterThan(5);
    expect(scripts).toEqual(expect.arrayContaining(release));
  });
});
