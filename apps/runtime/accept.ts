/** One range of an Accept header. */
export interface AcceptRange {
  /** In small letters, such as `text/html` or `text/*`. */
  readonly type: string;
  /** Without `q`. */
  readonly parameters: ReadonlyMap<string, string>;
  /** From 0 to 1; 0 also for what is no weight. */
  readonly quality: number;
}

/** The ranges of an Accept header, in its order. RFC 9110 section 12.5.1. */
export function readAccept(accept: string | undefined): AcceptRange[] {
  if (accept === undefined || accept === '') return [];
  return accept.toLowerCase().split(',').map(readRange);
}

function readRange(text: string): AcceptRange {
  const [type = '', ...rest] = text.split(';').map((part) => part.trim());
  const parameters = new Map(
    rest.map((part): [string, string] => {
      const [name = '', value = ''] = part.split('=', 2);
      return [name.trim(), value.trim()];
    }),
  );
  const quality = Number(parameters.get('q') ?? 1);
  parameters.delete('q');
  return { type, parameters, quality: quality >= 0 && quality <= 1 ? quality : 0 };
}
