import { Problem } from './problems.ts';

/** What a list goes on behind; a cursor of one list is none of another. */
export type CursorKind = 'topics' | 'subscriptions' | 'dead_letters' | 'api_keys';

const prefixes = {
  topics: 't',
  subscriptions: 's',
  dead_letters: 'd',
  api_keys: 'k',
} as const satisfies Record<CursorKind, string>;

/** The opaque text that asks for what comes behind `last`. */
export function encodeCursor(kind: CursorKind, last: string): string {
  return Buffer.from(`${prefixes[kind]}:${last}`).toString('base64url');
}

/** Reads a cursor; throws `invalid_cursor` for one that this list did not give. */
export function decodeCursor(
  kind: CursorKind,
  cursor: string | undefined,
  isValid: (last: string) => boolean,
): string | undefined {
  if (cursor === undefined) return undefined;
  const text = Buffer.from(cursor, 'base64url').toString();
  const last = text.slice(prefixes[kind].length + 1);
  if (encodeCursor(kind, last) !== cursor || !isValid(last)) {
    throw new Problem('invalid_cursor', 'Take next_cursor of the page before, as it is.', {
      errors: [{ detail: 'This list gave no such cursor.', parameter: 'cursor' }],
    });
  }
  return last;
}

/** A page out of one row more than it may hold. */
export function pageOf<Row, Item>(
  rows: readonly Row[],
  limit: number,
  shape: { item: (row: Row) => Item; cursor: (row: Row) => string },
): { items: Item[]; next_cursor: string | null } {
  const page = rows.slice(0, limit);
  const last = page.at(-1);
  return {
    items: page.map(shape.item),
    next_cursor: rows.length > limit && last !== undefined ? shape.cursor(last) : null,
  };
}
