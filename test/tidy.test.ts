// The repository checks itself: conventions that neither the compiler nor the linter knows.
import { existsSync, globSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { deploymentVariables } from '#runtime/config-deployment.ts';
import {
  schemaOf,
  variableGroups,
  type VariableName,
  variableNames,
} from '#runtime/config-variables.ts';
import packageJson from '../package.json' with { type: 'json' };
import {
  configurationTable,
  type DeploymentFile,
  fallbacksOf,
  fixedDefaultOf,
  readersOf,
} from './support/configuration-table.ts';

const top = join(import.meta.dirname, '..');
const ignored = ['node_modules', 'data', '.git', 'coverage', 'results'];
const exclude = (name: string): boolean => ignored.includes(basename(name));

function filesOf(...patterns: string[]): string[] {
  return globSync(patterns, { cwd: top, exclude }).toSorted();
}

const textOf = (file: string): string => readFileSync(join(top, file), 'utf8');

const withText = (...files: string[]): DeploymentFile[] =>
  files.map((path) => ({ path, text: textOf(path) }));

const sources = filesOf('{apps,db,test}/**/*.ts');
const generated = ['db/schema.ts'];

describe('files and folders', () => {
  test('the top level has what it is meant to have', () => {
    const tracked =
      'apps db deploy test package.json package-lock.json tsconfig.json docker-compose.yml ' +
      'docker-compose.prod.yml README.md LICENSE CONTRIBUTING.md CHANGELOG.md SECURITY.md';
    // What is there on a machine that works with it.
    const local = 'node_modules data coverage';
    const known = `${tracked} ${local}`.split(' ');
    const others = readdirSync(top).filter(
      (name) => !name.startsWith('.') && !known.includes(name),
    );
    expect(others).toEqual([]);
  });

  test('names say what is inside: no index.ts, no drawer for everything', () => {
    const drawer = /^(index|utils?|common|core|helpers?|misc|shared|types)(\.[a-z]+)*$/;
    const names = sources.flatMap((file) => file.split('/').map((name) => [name, file] as const));
    expect(names.filter(([name]) => drawer.test(name)).map(([, file]) => file)).toEqual([]);
  });

  test('no file is longer than 400 lines', () => {
    const long = [...sources, ...filesOf('db/**/*.sql')]
      .filter((file) => !generated.includes(file))
      .filter((file) => textOf(file).split('\n').length > 401);
    expect(long).toEqual([]);
  });

  test('main.ts only puts a process together: at most 80 lines', () => {
    const long = filesOf('apps/*/main.ts').filter((file) => textOf(file).split('\n').length > 81);
    expect(long).toEqual([]);
  });
});

describe('words', () => {
  // One word for one thing: left of the colon what is easily written, right what it is called here.
  const foreign = {
    enqueue: 'publish',
    dequeue: 'claim',
    exchange: 'topic',
    dlx: 'dead letter',
    requeue: 'redrive or nack',
    janitor: 'reaper',
    master: 'leader',
    epoch: 'term',
  };
  const words = Object.keys(foreign);
  const capitalized = words.map((word) => `${word[0]!.toUpperCase()}${word.slice(1)}`).join('|');
  const declared = /\b(?:const|let|function|class|interface|type)\s+([A-Za-z_$][\w$]*)/g;
  // enqueueEvents, oldMaster and MASTER_KEY, but not postmaster
  const inCode = new RegExp(
    `(?:^|_)(?:${words.join('|')})(?![a-z])|[a-z\\d](?:${capitalized})(?![a-z])|^(?:${capitalized})(?![a-z])|(?:^|_)(?:${words.join('|').toUpperCase()})(?:_|$)`,
  );

  test('nothing is declared by a word that is not ours', () => {
    const found = sources.flatMap((file) =>
      [...textOf(file).matchAll(declared)]
        .filter(([, name = '']) => inCode.test(name.replace('SinceEpoch', '')))
        .map(([, name]) => `${file}: ${name}`),
    );
    expect(found).toEqual([]);
  });

  test('SQL has none of them as an identifier', () => {
    const pattern = new RegExp(`\\b(\\w+_)?(${words.join('|')})(_\\w+)?\\b`, 'gi');
    const found = filesOf('db/**/*.sql').flatMap((file) => {
      const code = textOf(file)
        .replaceAll(/--.*$/gm, '')
        .replaceAll(/'[^']*'/g, '')
        .replaceAll(/extract\s*\(\s*epoch\b/gi, '');
      return [...code.matchAll(pattern)].map(([word]) => `${file}: ${word}`);
    });
    expect(found).toEqual([]);
  });
});

describe('configuration', () => {
  test('.env.example is what the schema says (npm run check -- --update writes it)', async () => {
    await expect(envExample()).toMatchFileSnapshot(join(top, '.env.example'));
  });

  const files = {
    composeFiles: withText('docker-compose.yml', 'docker-compose.prod.yml'),
    scripts: withText(...filesOf('deploy/{swarm,certificate,release}/*')),
  };

  test('deploy/configuration.md is what the schema says (npm run check -- --update writes it)', async () => {
    const table = configurationTable(files);
    await expect(table).toMatchFileSnapshot(join(top, 'deploy/configuration.md'));
  });

  test('each variable is read by somebody', () => {
    expect(variableNames.filter((name) => readersOf(name, files).length === 0)).toEqual([]);
  });

  test('what the stack takes where nothing is set is the default of the schema', () => {
    const stack = textOf('docker-compose.prod.yml');
    const names = Object.keys(deploymentVariables) as VariableName[];
    const uses = names.flatMap((name) => fallbacksOf(name, stack).map((text) => [name, text]));
    expect(uses.length).toBeGreaterThan(0);
    const others = uses.filter(([name, text]) => {
      const value = fixedDefaultOf(name as VariableName);
      return value !== undefined && text !== value;
    });
    expect(others).toEqual([]);
  });

  test('who comes from the earlier broker finds each variable with both values', () => {
    const guide = textOf('deploy/from-single-process.md').replaceAll(/ +/g, ' ');
    const missing = variableNames.filter((name) => {
      const { earlier } = schemaOf(name);
      const row = `| \`${name}\` | ${earlier} | ${fixedDefaultOf(name)} |`;
      return earlier !== undefined && !guide.includes(row);
    });
    expect(missing).toEqual([]);
  });

  test('only the configuration and the composition roots read the environment', () => {
    const readers = filesOf('{apps,db}/**/*.ts').filter((file) =>
      /process\.env\b/.test(textOf(file)),
    );
    expect(readers.filter((file) => !/^apps\/\w+\/main\.ts$/.test(file))).toEqual([]);
  });
});

describe('database', () => {
  test('migrations are numbered without gaps', () => {
    const names = filesOf('db/migrations/*').map((file) => basename(file));
    for (const [index, name] of names.entries()) {
      expect(name).toMatch(
        new RegExp(`^${String(index + 1).padStart(4, '0')}_[a-z_]+(\\.notx)?\\.sql$`),
      );
    }
  });

  test('no clock but the database’s decides anything', () => {
    // what is measured is measured on the monotonic clock; a Date is only made of what the database said
    const clock = /\bDate\.now\(|\bnew Date\(\)|\bDate\(\)/;
    const found = filesOf('{apps,db}/**/*.ts').filter((file) => clock.test(textOf(file)));
    // a span that is written later says when it began, and decides nothing
    expect(found).toEqual(['apps/runtime/tracing.ts']);
  });

  test('each verb has a test of its own', () => {
    // What verbs are made of, and not verbs themselves.
    const others = ['db/schema.ts', 'db/client.ts', 'db/errors.ts', 'db/lease.ts'];
    const verbs = filesOf('db/*.ts').filter((file) => !others.includes(file));
    const without = verbs.filter(
      (file) => !existsSync(join(top, 'test/db', basename(file).replace(/\.ts$/, '.test.ts'))),
    );
    expect(without).toEqual([]);
  });
});

describe('package.json', () => {
  test('versions are exact', () => {
    const { dependencies, devDependencies } = packageJson;
    const versions = Object.entries({ ...dependencies, ...devDependencies });
    expect(versions.filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))).toEqual(
      [],
    );
  });

  test('the lock file names no registry', () => {
    expect(textOf('package-lock.json')).not.toContain('"resolved"');
  });

  test('there are at most 14 scripts, and the files that they start exist', () => {
    const scripts = Object.values(packageJson.scripts);
    expect(scripts.length).toBeLessThanOrEqual(14);
    const started = scripts.flatMap(
      (script) => script.match(/\b(apps|db|test)\/[\w./-]+\.ts/g) ?? [],
    );
    expect(started.filter((file) => !existsSync(join(top, file)))).toEqual([]);
  });
});

describe('documents', () => {
  const documents = filesOf('*.md', '{deploy,db}/**/*.md');
  const inBackticks = /`((?:apps|db|deploy|test|\.github)\/[\w./-]*\w)`/g;

  test('the files that they name exist', () => {
    const named = documents.flatMap((document) =>
      [...textOf(document).matchAll(inBackticks)].map(([, file = '']) => [document, file] as const),
    );
    expect(named.length).toBeGreaterThan(50);
    const missing = named
      .filter(([, file]) => !file.includes('/NNNN_'))
      .filter(([, file]) => !existsSync(join(top, file)));
    expect(missing.map((each) => each.join(': '))).toEqual([]);
  });

  test('the files that they link to exist', () => {
    const links = documents.flatMap((document) =>
      [...textOf(document).matchAll(/\]\((?!https?:)([^)#]+)/g)].map(
        ([, file = '']) => [document, join(dirname(document), file)] as const,
      ),
    );
    expect(links.length).toBeGreaterThan(0);
    const missing = links.filter(([, file]) => !existsSync(join(top, file)));
    expect(missing.map((each) => each.join(': '))).toEqual([]);
  });
});

describe('deployment', () => {
  const composeFiles = filesOf('docker-compose*.yml');

  test('images are pinned to a version', () => {
    const images = composeFiles.flatMap((file) =>
      [...textOf(file).matchAll(/^\s*image:\s*(\S+)/gm)].map(([, image = '']) => image),
    );
    // Our own image comes by variable.
    const loose = images.filter(
      (image) => !image.includes('${') && !/:v?\d+\.\d+|@sha256:/.test(image),
    );
    expect(loose).toEqual([]);
  });

  test('what is set for the processes is a variable of the schema, in both Compose files', () => {
    const known = Object.values(variableGroups).flatMap((group) => Object.keys(group));
    const secrets = known.filter((name) => schemaOf(name as VariableName).secret === true);
    const allowed = [...known, ...secrets.map((name) => `${name}_FILE`)];
    // What nginx and PostgreSQL are started with.
    const scripts = filesOf('deploy/{nginx,postgres}/*').map(textOf);
    const foreign = scripts.flatMap((text) =>
      [...text.matchAll(/^: "\$\{([A-Z_]+):=/gm)].map(([, name = '']) => name),
    );
    const keys = composeFiles.flatMap((file) =>
      [...textOf(file).matchAll(/^\s+([A-Z][A-Z0-9_]+):/gm)].map(([, name = '']) => name),
    );
    expect(keys.length).toBeGreaterThan(0);
    // Of other programs: PostgreSQL, the build, Grafana and Prometheus.
    const notOurs = keys.filter(
      (name) => !/^POSTGRES_|^VERSION$|^GF_|^RUNBOOK_BASE$|^GRAFANA_BASE$/.test(name),
    );
    expect(notOurs.filter((name) => ![...allowed, ...foreign].includes(name))).toEqual([]);
  });

  test('metrics that are asked for exist', () => {
    const declared = filesOf('apps/runtime/metrics/*.ts', 'apps/runtime/metrics.ts')
      .map(textOf)
      .join('\n');
    const asked = filesOf('deploy/**/*.{yml,yaml,json}').flatMap(
      (file) => textOf(file).match(/\bbroker_[a-z_]+\b/g) ?? [],
    );
    const services = [
      'broker_api',
      'broker_worker',
      'broker_reaper',
      'broker_nginx',
      'broker_postgres',
    ];
    const names = asked.map((name) => name.replace(/_(bucket|sum|count)$/, ''));
    const metrics = names.filter((name) => !services.includes(name));
    expect(metrics.filter((name) => !declared.includes(`'${name}'`))).toEqual([]);
  });
});

describe('workflows', () => {
  const workflows = filesOf('.github/workflows/*.yml');
  const texts = workflows.map((file) => [file, textOf(file)] as const);
  const runs = texts.flatMap(([file, text]) =>
    runsOf(text).map((script) => ({ file, script, shown: `${file}: ${script}` })),
  );

  test('what they run exists: npm scripts, projects of vitest, files', () => {
    expect(runs.length).toBeGreaterThan(10);
    const scripts = ['ci', ...Object.keys(packageJson.scripts)];
    const projects = [...textOf('test/vitest.config.ts').matchAll(/name: '(\w+)'/g)].map(
      ([, name]) => name,
    );
    const missing = runs.filter(({ script }) => {
      const named = [...script.matchAll(/\bnpm (?:run )?([\w:]+)/g)].map(([, name]) => name!);
      const chosen = [...script.matchAll(/--project (\w+)/g)].map(([, name]) => name);
      const files = script.match(/(?<![\w/.$])(?:apps|db|deploy|test)\/[\w./-]+/g) ?? [];
      return (
        named.some((name) => !scripts.includes(name)) ||
        chosen.some((name) => !projects.includes(name)) ||
        files.some((file) => !existsSync(join(top, file)))
      );
    });
    expect(missing.map(({ shown }) => shown)).toEqual([]);
    const called = texts.flatMap(([, text]) => text.match(/(?<=uses: \.\/)\S+/g) ?? []);
    expect(called.filter((file) => !existsSync(join(top, file)))).toEqual([]);
  });

  test('a step runs a few lines at most, and no expression gets into them', () => {
    // What somebody can name, such as a branch, would be run as a command; it comes by env. More lines are a script with a test.
    const bad = runs.filter(
      ({ script }) => script.includes('${{') || script.split('\n').length > 3,
    );
    expect(bad.map(({ shown }) => shown)).toEqual([]);
  });

  test('actions are pinned to a commit, with the version beside it', () => {
    const used = texts.flatMap(([, text]) => text.match(/(?<=uses: )[^\n]+/g) ?? []);
    expect(used.length).toBeGreaterThan(5);
    const loose = used.filter(
      (each) => !/^(\.\/\S+|[\w.-]+(\/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$/.test(each),
    );
    expect(loose).toEqual([]);
  });

  test('each says its permissions, a time limit for each job, and a shell that notices a failure in a pipe', () => {
    for (const [file, text] of texts) {
      expect(text, file).toMatch(/^permissions:/m);
      expect(text, file).toMatch(/^defaults:\n {2}run:\n {4}shell: bash$/m);
      const jobs = text.match(/^ {4}runs-on:/gm) ?? [];
      expect(text.match(/^ {4}timeout-minutes:/gm), file).toHaveLength(jobs.length);
    }
  });
});

/** The scripts of all steps, without the indentation of the file. */
function runsOf(workflow: string): string[] {
  const single = [...workflow.matchAll(/^ +(?:- )?run: (?!\|)(.+)$/gm)].map(
    ([, line = '']) => line,
  );
  const blocks = [...workflow.matchAll(/^( +)(?:- )?run: \|\n((?:\1 +.*\n|\n)+)/gm)];
  return [...single, ...blocks.map(([, , block = '']) => block.trim().replaceAll(/^ +/gm, ''))];
}

/** The text of `.env.example`: every variable, with its default, commented out. */
function envExample(): string {
  const lines = [
    '# Every variable that the processes read, with its default. Commented out: change what you need.',
    '# A wrong value, or a name that is nearly one of these, stops the process and is named.',
    '# A secret may come from a file instead: NAME_FILE has its path.',
    '# "Earlier": the value that the earlier single-process broker had under the same name.',
  ];
  for (const [heading, group] of Object.entries(variableGroups)) {
    lines.push('', `# ${heading}`);
    for (const name of Object.keys(group) as VariableName[]) lines.push('', ...linesOf(name));
  }
  return `${lines.join('\n')}\n`;
}

function linesOf(name: VariableName): string[] {
  const schema = schemaOf(name);
  const value = schema.shown ?? (Array.isArray(schema.default) ? '' : String(schema.default));
  const choices = schema.enum === undefined ? '' : ` One of ${schema.enum.join(', ')}.`;
  const file = schema.secret === true ? ` Also ${name}_FILE.` : '';
  const note = schema.default === undefined && schema.secret === true ? ' No default.' : '';
  return [
    `# ${schema.description}${choices}${file}${note}`,
    ...(schema.earlier === undefined ? [] : [`# Earlier: ${name}=${schema.earlier}`]),
    `# ${name}=${value}`,
  ];
}
