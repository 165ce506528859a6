/** Asks the reader of publish bodies, for the tests of it. */
import { readPublishBody } from '../../apps/api/publish/publish-body.ts';
import type { EventInput } from '../../apps/api/publish/publish-body.ts';

export const LIMITS = { eventBytesMax: 262_144, eventsMax: 1000, depthMax: 128 };

export function read(body: string | Buffer, limits = LIMITS) {
  return readPublishBody(Buffer.isBuffer(body) ? body : Buffer.from(body), limits);
}

export function eventOf(body: string): EventInput {
  const result = read(body);
  if ('faults' in result) {
    throw new Error(JSON.stringify(result.faults));
  }
  return result.events[0] as EventInput;
}

/** What is wrong with a body, as `code pointer`. */
export function faultsOf(body: string | Buffer, limits = LIMITS): string[] {
  const result = read(body, limits);
  return 'faults' in result ? result.faults.map((fault) => `${fault.code} ${fault.pointer}`) : [];
}

/** An event with one more member. */
export function withMember(member: string): string {
  return `{"type":"a",${member}}`;
}

export const nested = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth);
export const many = (count: number, one: (i: number) => string): string =>
  Array.from({ length: count }, (_, i) => one(i)).join(',');
