import { isUtf8 } from 'node:buffer';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import {
  BYTE,
  FAILED,
  byteAt,
  clearNotes,
  createScan,
  fail,
  type Scan,
  skipColon,
  skipSpace,
  skipString,
  skipValue,
} from './publish/json-scanner.ts';
import { invalidRequest, pointerTo, Problem } from './problems.ts';

/** Bodies that name and set things are small. */
export const controlBodyBytesMax = 65_536;
const depthMax = 16;

/**
 * Parses JSON bodies of everything but publishing: strictly. A name that is given twice, `__proto__`, and characters that
 * PostgreSQL has not are refused, because what they would mean is anybody's guess.
 */
export function addControlBodyParser(app: FastifyInstance): void {
  app.removeContentTypeParser('application/json');
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body, done) => {
    try {
      done(null, parseControlBody(body as Buffer));
    } catch (error) {
      done(error as Error, undefined);
    }
  });
}

/** For bodies whose members all have defaults: none at all means the same as `{}`. */
export async function emptyBodyIsNone(
  request: FastifyRequest,
  _reply: FastifyReply,
): Promise<void> {
  if (request.body === undefined) request.body = {};
}

/** The value of a JSON text; undefined for none. Throws the `Problem` that says what is wrong, and where. */
export function parseControlBody(body: Buffer): unknown {
  if (body.length === 0) return undefined;
  if (!isUtf8(body)) throw invalidJson('The body is not valid UTF-8.');
  const scan = createScan(body, depthMax);
  const end = skipSpace(body, checkValue(scan, skipSpace(body, 0), { pointer: '', depth: 0 }));
  if (end < body.length) {
    fail(scan, end, 'the end of the body');
    throw invalidJson(scan.failure);
  }
  return JSON.parse(body.toString('utf8')) as unknown;
}

interface Place {
  readonly pointer: string;
  readonly depth: number;
}

function checkValue(scan: Scan, start: number, place: Place): number {
  switch (byteAt(scan.bytes, start)) {
    case BYTE.openObject:
      return checkMembers(scan, start, descend(place, place.pointer));
    case BYTE.openArray:
      return checkElements(scan, start, descend(place, place.pointer));
    case BYTE.quote:
      return checkString(scan, start, place.pointer);
    default:
      return passed(scan, skipValue(scan, start));
  }
}

function descend({ depth }: Place, pointer: string): Place {
  if (depth === depthMax) {
    throw invalidRequest(`Nothing may be nested deeper than ${depthMax}.`, pointer);
  }
  return { pointer, depth: depth + 1 };
}

function checkMembers(scan: Scan, start: number, place: Place): number {
  const names = new Set<string>();
  let at = skipSpace(scan.bytes, start + 1);
  if (byteAt(scan.bytes, at) === BYTE.closeObject) return at + 1;
  for (;;) {
    if (byteAt(scan.bytes, at) !== BYTE.quote) {
      throw expected(scan, at, 'a name in double quotes');
    }
    const nameEnd = checkString(scan, at, place.pointer);
    const name = JSON.parse(Buffer.from(scan.bytes.subarray(at, nameEnd)).toString()) as string;
    const pointer = pointerTo(place.pointer, name);
    if (names.has(name)) throw invalidRequest(`${name} must be given once.`, pointer);
    if (name === '__proto__') throw invalidRequest(`${name} is not known here.`, pointer);
    names.add(name);
    const value = passed(scan, skipColon(scan, nameEnd));
    at = skipSpace(scan.bytes, checkValue(scan, value, { ...place, pointer }));
    const byte = byteAt(scan.bytes, at);
    if (byte === BYTE.closeObject) return at + 1;
    if (byte !== BYTE.comma) throw expected(scan, at, 'a comma or }');
    at = skipSpace(scan.bytes, at + 1);
  }
}

function checkElements(scan: Scan, start: number, place: Place): number {
  let at = skipSpace(scan.bytes, start + 1);
  if (byteAt(scan.bytes, at) === BYTE.closeArray) return at + 1;
  for (let index = 0; ; index += 1) {
    const pointer = `${place.pointer}/${index}`;
    at = skipSpace(scan.bytes, checkValue(scan, at, { ...place, pointer }));
    const byte = byteAt(scan.bytes, at);
    if (byte === BYTE.closeArray) return at + 1;
    if (byte !== BYTE.comma) throw expected(scan, at, 'a comma or ]');
    at = skipSpace(scan.bytes, at + 1);
  }
}

function checkString(scan: Scan, start: number, pointer: string): number {
  clearNotes(scan);
  const end = passed(scan, skipString(scan, start + 1));
  if (scan.nul) throw invalidRequest('A string must not hold the escape \\u0000.', pointer);
  if (scan.lone) {
    throw invalidRequest('A string must not hold half of a surrogate pair.', pointer);
  }
  return end;
}

function passed(scan: Scan, at: number): number {
  if (at === FAILED) throw invalidJson(scan.failure);
  return at;
}

function expected(scan: Scan, at: number, what: string): Problem {
  fail(scan, at, what);
  return invalidJson(scan.failure);
}

function invalidJson(detail: string): Problem {
  return new Problem('invalid_json', detail, { errors: [{ detail, pointer: '' }] });
}
