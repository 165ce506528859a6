import Type, { type Static, type TSchema } from 'typebox';

export const pageLimitMax = 250;

/** The query of every list. */
export const pageQueryMembers = {
  limit: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: pageLimitMax,
      default: 50,
      description: 'Items at most.',
    }),
  ),
  cursor: Type.Optional(
    Type.String({ minLength: 1, maxLength: 512, description: 'next_cursor of the page before.' }),
  ),
};

export const PageQuery = Type.Object(pageQueryMembers, { additionalProperties: false });
export type PageQuery = Static<typeof PageQuery>;

/** One page of a list. */
export function Page<Item extends TSchema>(item: Item) {
  return Type.Object({
    items: Type.Array(item),
    next_cursor: Type.Unsafe<string | null>({
      type: ['string', 'null'],
      description: 'Asks for the next page; null on the last one.',
    }),
  });
}
