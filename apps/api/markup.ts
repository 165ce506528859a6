const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** HTML as it is written to a browser: of `markup`, or a constant. */
export class Markup {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  toString(): string {
    return this.#text;
  }
}

export type MarkupValue = Markup | string | number | readonly Markup[];

/**
 * HTML by a template: what is put in is text and is escaped, as the content of an element and as an attribute in double
 * quotes, unless it is markup itself.
 */
export function markup(parts: TemplateStringsArray, ...values: readonly MarkupValue[]): Markup {
  const rendered = values.map((value) => render(value));
  return new Markup(String.raw({ raw: parts }, ...rendered));
}

function render(value: MarkupValue): string {
  if (value instanceof Markup) return value.toString();
  if (typeof value === 'string') return value.replaceAll(/[&<>"']/g, (each) => escapes[each] ?? '');
  if (typeof value === 'number') return String(value);
  return value.map(String).join('');
}
