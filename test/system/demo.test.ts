/*
 * Goal: npm run demo sees that nothing is lost or altered, and would see it otherwise.
 * Method: its short form as a process, on a broker that keeps its promises and on the same one behind a proxy that does not:
 * one byte of one answer and one of a push are changed, and one publish is answered with 202 and goes nowhere.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  createServer,
  type IncomingMessage,
  request,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Cluster } from '#test/support/cluster.ts';
import { cloneDatabase } from '#test/support/database.ts';

const program = join(import.meta.dirname, '../../apps/demo/main.ts');

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let cluster: Cluster;

beforeAll(async () => {
  database = await cloneDatabase();
  cluster = await Cluster.start({ databaseUrl: database.url, workers: 1 });
});

afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

/** Runs the demo with 60 of its payloads. */
async function runDemo(brokerUrl: string): Promise<{ code: number | null; output: string }> {
  const child = spawn(process.execPath, [program, '--payloads', '60'], {
    env: {
      PATH: process.env['PATH'],
      NODE_ENV: 'test',
      BROKER_URL: brokerUrl,
      API_KEY: cluster.adminKey,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 100_000,
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (piece: string) => (output += piece));
  }
  await once(child, 'close');
  return { code: child.exitCode, output };
}

/** The number of a row of the table. */
function rowOf(output: string, name: string): number {
  const found = new RegExp(`^ {2}${name} +([\\d,]+)`, 'm').exec(output);
  if (found?.[1] === undefined) throw new Error(`no ${name} in:\n${output}`);
  return Number(found[1].replaceAll(',', ''));
}

test('a broker that keeps its promises: nothing lost, nothing altered, all else explained', async () => {
  const { code, output } = await runDemo(cluster.urls[0]!);
  expect(code, output).toBe(0);
  expect(rowOf(output, 'published')).toBe(120);
  expect(rowOf(output, 'lost')).toBe(0);
  expect(rowOf(output, 'altered')).toBe(0);
  // the ones that fail on purpose have done so
  for (const row of ['repeated', 'retried', 'duplicates', 'dead-lettered', 'worst delay']) {
    expect(rowOf(output, row), row).toBeGreaterThan(0);
  }
  for (const reason of ['answered 500', 'answered 429', 'never answered', 'connection dropped']) {
    expect(output).toMatch(new RegExp(` [1-9]\\d* ${reason}`));
  }
  expect(rowOf(output, 'pushed')).toBeGreaterThan(120);
  expect(rowOf(output, 'signatures')).toBe(rowOf(output, 'pushed'));
  expect(output).toContain('checked by the standardwebhooks package, all good');
  expect(rowOf(output, 'redriven')).toBe(rowOf(output, 'dead-lettered'));
  const topics = await fetch(`${cluster.urls[0]}/api/v1/topics`, {
    headers: { authorization: `Bearer ${cluster.adminKey}` },
  });
  expect(await topics.json(), 'it cleans up').toMatchObject({ items: [] });
});

test('bytes that are changed and a publish that goes nowhere are found: it ends with 1', async () => {
  await using proxy = await startBadProxy(cluster.urls[0]!);
  const { code, output } = await runDemo(proxy.url);
  expect(code, output).toBe(1);
  expect(rowOf(output, 'altered')).toBe(2);
  expect(output).toMatch(/altered in demo-.*-(all|some): .*its data from character/);
  expect(output).toMatch(/altered in demo-.*-pushed: .*its data from character/);
  expect(output).toMatch(/standardwebhooks package, 1 bad/);
  expect(output).toMatch(/the signature of \d+ at attempt 1: No matching signature found/);
  expect(rowOf(output, 'lost')).toBeGreaterThan(0);
  expect(output).toMatch(/demo-.*-all: .* never came/);
  expect(output).toMatch(/demo-.*-pushed: .* never came/);
});

test('a broker that does not push to this machine: it says how to change that, and does the rest', async () => {
  await using closed = await Cluster.start({
    databaseUrl: database.url,
    reapers: 0,
    env: { ALLOW_PRIVATE_TARGETS: '' },
  });
  const { code, output } = await runDemo(closed.urls[0]!);
  expect(code, output).toBe(0);
  expect(output).toContain('ALLOW_PRIVATE_TARGETS=127.0.0.0/8');
  expect(rowOf(output, 'lost')).toBe(0);
  expect(output).not.toContain('signatures');
});

interface Piece {
  readonly asked: string;
  readonly status: number;
  readonly body: string;
}

/** A proxy that alters the data of one event in one answer and of one push, and keeps one event to itself. */
async function startBadProxy(target: string) {
  let hasAltered = false;
  let keptId: string | undefined;
  let endpoint: string | undefined;
  let hasAlteredPush = false;
  const swallow = (path: string, body: string): boolean => {
    if (!path.endsWith('/events')) return false;
    const isSingle = body.trimStart().startsWith('{');
    if (isSingle) keptId ??= (JSON.parse(body) as { id: string }).id;
    return isSingle && body.includes(`"id":"${keptId}"`);
  };
  const alter = ({ asked, body }: Piece): string => {
    // of a consumer that stays until it has its answer
    if (hasAltered || !asked.includes('"max_messages":50')) return body;
    hasAltered = body.includes('"data"');
    return alterName(body, '"data":\\s*');
  };
  const handle = async (incoming: IncomingMessage, answer: ServerResponse): Promise<void> => {
    const path = incoming.url ?? '';
    let body = await textOf(incoming);
    if (swallow(path, body)) return void answer.writeHead(202).end('{"id":"1","duplicate":false}');
    if (path === '/hook' && !hasAlteredPush) {
      hasAlteredPush = true;
      body = alterName(body);
    }
    // events that are pushed come here on their way
    const asked = body.replace(/"endpoint":"([^"]+)\/hook"/, (_, url: string) => {
      endpoint = url;
      return `"endpoint":"${urlOf(server)}/hook"`;
    });
    const to = path === '/hook' ? (endpoint ?? '') : target;
    const piece = await pass(to, { incoming, answer, body: asked });
    if (piece !== undefined) answer.writeHead(piece.status).end(alter(piece));
  };
  // a client that has gone needs no answer
  const server = createServer((incoming, answer) => void handle(incoming, answer).catch(() => {}));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: urlOf(server),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

/** Changes the first letter of the first name in an object. */
function alterName(text: string, before = '^'): string {
  const name = new RegExp(`(${before}\\{\\s*")([a-z])`);
  return text.replace(
    name,
    (_, start: string, letter: string) => `${start}${letter === 'x' ? 'y' : 'x'}`,
  );
}

function urlOf(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Hands a request on; undefined when its client has gone meanwhile. */
async function pass(
  target: string,
  parts: { incoming: IncomingMessage; answer: ServerResponse; body: string },
): Promise<Piece | undefined> {
  const { incoming, answer, body } = parts;
  const { method, headers, url: path = '' } = incoming;
  const length = { 'content-length': String(Buffer.byteLength(body)) };
  const onward = request(`${target}${path}`, { method, headers: { ...headers, ...length } });
  answer.once('close', () => onward.destroy());
  onward.end(body);
  const [response] = (await once(onward, 'response')) as [IncomingMessage];
  const text = await textOf(response);
  const status = response.statusCode ?? 0;
  return answer.destroyed ? undefined : { asked: body, status, body: text };
}

async function textOf(stream: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of stream) pieces.push(piece as Buffer);
  return Buffer.concat(pieces).toString('utf8');
}
