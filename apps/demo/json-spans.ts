/** Where a JSON value stands in a text: from its first character to the one behind its last. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

const space = /[ \t\n\r]*/y;
const string = /"(?:[^"\\]+|\\[^])*"/y;
const scalar = /[^\s,\]}]+/y;
const bracketOrQuote = /["{}[\]]/g;

/**
 * Finds values in a JSON text without making them anew, so that two of them can be compared character by character. The text
 * has to be valid JSON; whoever hands it in has parsed it.
 */
export function valueSpan(text: string, from = 0): Span {
  const start = skip(space, text, from);
  return { start, end: endOfValue(text, start) };
}

/** The members of the object in `span`, by name; of a name that comes twice the last. */
export function memberSpans(text: string, span: Span): Map<string, Span> {
  const members = new Map<string, Span>();
  let at = skip(space, text, span.start + 1);
  while (at < span.end - 1) {
    const name = valueSpan(text, at);
    // the colon
    const value = valueSpan(text, skip(space, text, name.end) + 1);
    members.set(JSON.parse(text.slice(name.start, name.end)) as string, value);
    at = nextElement(text, value);
  }
  return members;
}

/** The elements of the array in `span`. */
export function elementSpans(text: string, span: Span): Span[] {
  const elements: Span[] = [];
  let at = skip(space, text, span.start + 1);
  while (at < span.end - 1) {
    const element = valueSpan(text, at);
    elements.push(element);
    at = nextElement(text, element);
  }
  return elements;
}

/** Behind the comma, or the closing bracket. */
function nextElement(text: string, { end }: Span): number {
  const at = skip(space, text, end);
  return text[at] === ',' ? skip(space, text, at + 1) : at;
}

function endOfValue(text: string, start: number): number {
  switch (text[start]) {
    case '"':
      return skip(string, text, start);
    case '{':
    case '[':
      return endOfBrackets(text, start);
    default:
      return skip(scalar, text, start);
  }
}

function endOfBrackets(text: string, start: number): number {
  let depth = 0;
  let at = start;
  do {
    bracketOrQuote.lastIndex = at;
    const found = bracketOrQuote.exec(text);
    if (found === null) throw new Error(`The JSON text ends inside the value at ${start}`);
    if (found[0] === '"') {
      at = skip(string, text, found.index);
      continue;
    }
    depth += found[0] === '{' || found[0] === '[' ? 1 : -1;
    at = found.index + 1;
  } while (depth > 0);
  return at;
}

function skip(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at;
  if (!pattern.test(text)) throw new Error(`There is no JSON value at ${at}`);
  return pattern.lastIndex;
}
