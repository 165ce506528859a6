import { dirname } from 'node:path';
import {
  loadApiConfig,
  loadDemoConfig,
  loadMigrateConfig,
  loadReaperConfig,
  loadSmokeConfig,
  loadStandaloneConfig,
  loadWorkerConfig,
} from '#runtime/config.ts';
import { deploymentVariables } from '#runtime/config-deployment.ts';
import {
  schemaOf,
  variableGroups,
  type VariableName,
  type VariableSchema,
} from '#runtime/config-variables.ts';

/** A file of the repository that takes variables of the deployment. */
export interface DeploymentFile {
  readonly path: string;
  readonly text: string;
}

export interface DeploymentFiles {
  /** They take `${NAME:-default}`; the defaults of the last one, the stack, hold where a variable has none of its own. */
  readonly composeFiles: readonly DeploymentFile[];
  /** Of an operator's shell. */
  readonly scripts: readonly DeploymentFile[];
}

const database = { DATABASE_URL: 'postgres://broker@127.0.0.1/broker' };
const broker = { BROKER_URL: 'http://127.0.0.1:3000', API_KEY: 'a-key-of-this-test' };

// What a process reads is what its configuration has, so that nobody keeps a second list.
const processes: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  api: loadApiConfig(database),
  worker: loadWorkerConfig(database),
  reaper: loadReaperConfig(database),
  migrate: loadMigrateConfig(database),
  'npm start': loadStandaloneConfig({}),
  'npm run demo': loadDemoConfig({}),
  'smoke test': loadSmokeConfig(broker),
};

const forms = {
  host: 'address or host name',
  'postgres-url': 'URL, `postgres://…`',
  'http-url': 'URL, `http://…` or `https://…`',
  origin: 'origins such as `https://app.example.com`; or `*` alone, not in production',
  cidr: 'addresses or CIDR ranges, but not every address',
  'target-cidr': 'addresses or CIDR ranges',
  'header-text': 'printable ASCII without spaces',
  'encryption-keys': '32 bytes in base64; up to 8 of them',
  'key-values': '`name=value` with commas between',
} satisfies Record<NonNullable<VariableSchema['check']>, string>;

const intro = `# Configuration

<!-- Written by \`npm run generate\` out of apps/runtime/config-variables.ts, config-deployment.ts and config-observability.ts: change those. -->

Every variable that the processes and the deployment read. \`.env.example\` has the same ones, to be copied.

- All values are checked when a process starts, those of other processes too, because they usually share one file. What is wrong, and a name that is nearly one of these, stops it
  with a message that names every fault. So do pairs that contradict each other, such as \`BASE_BACKOFF_MS\` above \`MAX_BACKOFF_MS\`. Set but empty is wrong too, except for lists.
- A secret may come from a file: \`NAME_FILE\` has its path, and a line break at the end of the file does not count. Both at once is wrong. The value is never shown.
- Numbers are plain digits without a unit: \`_MS\` counts milliseconds, \`_BYTES_\` bytes. Yes and no are \`true\`, \`false\`, \`1\`, \`0\`. Lists have commas between.
- \`npm start\`, \`npm run api\` and the other scripts read \`.env\` where there is one. Containers do not: \`docker-compose.yml\` names what it passes on, \`docker-compose.prod.yml\` gives every process the whole
  \`.env.prod\`, and secrets as files. The image sets \`NODE_ENV=production\`.
- What nginx alone knows is in [nginx/README.md](nginx/README.md); what the commands of \`deploy/swarm\` take from the shell is said by each with \`--help\`.
`;

/** The text of `deploy/configuration.md`: a table for each group of variables. */
export function configurationTable(files: DeploymentFiles): string {
  const head = ['variable', 'default', 'may be', 'read by', 'what'];
  const sections = Object.entries(variableGroups).map(([heading, group]) => {
    const rows = (Object.keys(group) as VariableName[]).map((name) => rowOf(name, files));
    return `\n## ${heading}\n\n${markdownTable(head, rows)}`;
  });
  return intro + sections.join('');
}

/** Who takes a variable: processes, and of the deployment's own variables also Compose files and folders of scripts. */
export function readersOf(name: VariableName, files: DeploymentFiles): string[] {
  const readers = Object.keys(processes).filter((each) => memberOf(name) in processes[each]!);
  if (!(name in deploymentVariables)) return readers;
  const composeFiles = files.composeFiles.filter(({ text }) => fallbacksOf(name, text).length > 0);
  const scripts = files.scripts.filter(({ text }) => new RegExp(`\\b${name}\\b`).test(text));
  const places = [
    ...composeFiles.map(({ path }) => path),
    ...scripts.map(({ path }) => dirname(path)),
  ];
  return [...readers, ...[...new Set(places)].map(code)];
}

/** What a Compose file takes where a variable is not set, at each place that has it; '' for nothing. */
export function fallbacksOf(name: VariableName, composeFile: string): string[] {
  const uses = composeFile.matchAll(new RegExp(`\\$\\{${name}(?::([-?])([^}]*))?\\}`, 'g'));
  return [...uses].map(([, operator, text = '']) => (operator === '-' ? text : ''));
}

/** The default that the schema has, as it is written; undefined where it has none. */
export function fixedDefaultOf(name: VariableName): string | undefined {
  const value = schemaOf(name).default;
  if (value === undefined || typeof value === 'string') return value;
  return Array.isArray(value) ? value.join(',') : JSON.stringify(value);
}

function rowOf(name: VariableName, files: DeploymentFiles): string[] {
  const schema = schemaOf(name);
  const readers = readersOf(name, files);
  const isForAll = readers.length === Object.keys(processes).length;
  return [
    schema.secret === true ? `${code(name)}, ${code(`${name}_FILE`)}` : code(name),
    defaultOf(name, files),
    choicesOf(schema),
    isForAll ? 'all' : readers.join(', '),
    schema.description ?? '',
  ];
}

function defaultOf(name: VariableName, { composeFiles }: DeploymentFiles): string {
  const [fallback] = fallbacksOf(name, composeFiles.at(-1)?.text ?? '');
  const text = fixedDefaultOf(name) ?? (name in deploymentVariables ? fallback : undefined);
  if (text !== undefined) return text === '' ? 'none' : code(text);
  const isComputed =
    !(name in database || name in broker) &&
    Object.values(processes).some((config) => config[memberOf(name)] !== undefined);
  return isComputed ? code(schemaOf(name).shown ?? '') : 'none';
}

function choicesOf(schema: VariableSchema & { readonly maxLength?: number }): string {
  if (schema.enum !== undefined) return schema.enum.map(code).join(', ');
  if (schema.type === 'boolean') return 'yes or no';
  if (schema.minimum !== undefined) return `${schema.minimum} to ${schema.maximum}`;
  const { check, pattern } = { ...schema, ...schema.items };
  const choices = [
    ...(schema.maxLength === undefined
      ? []
      : [`${schema.minLength} to ${schema.maxLength} characters`]),
    ...(check === undefined ? [] : [forms[check]]),
    ...(pattern === undefined ? [] : [code(pattern)]),
  ];
  return choices.join(', ') || 'text';
}

/** The name of a variable in the configuration of a process. */
function memberOf(name: VariableName): string {
  return name.toLowerCase().replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function code(text: string): string {
  return `\`${text}\``;
}

/** With columns as wide as their widest cell, as oxfmt has them. */
function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = [head, ...rows].map((row) =>
    row.map((cell) => cell.replaceAll('|', String.raw`\|`)),
  );
  const widths = head.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  const lines = [cells[0]!, widths.map((width) => '-'.repeat(width)), ...cells.slice(1)].map(
    (row) => `| ${row.map((cell, column) => cell.padEnd(widths[column]!)).join(' | ')} |\n`,
  );
  return lines.join('');
}
