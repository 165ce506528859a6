import fc from 'fast-check';
import { expect, test } from 'vitest';
import { elementSpans, memberSpans, type Span, valueSpan } from '../../apps/demo/json-spans.ts';

const cut = (text: string, { start, end }: Span): string => text.slice(start, end);

test('values are found where they stand, and their text is not touched', () => {
  const text = ' {"a" : [ 1.0 , "]\\"}" ,{ } ,[]], "b":{"data": { "n":12345678901234567890 } }\n} ';
  const members = memberSpans(text, valueSpan(text));
  expect([...members.keys()]).toEqual(['a', 'b']);
  const elements = elementSpans(text, members.get('a')!);
  expect(elements.map((span) => cut(text, span))).toEqual(['1.0', '"]\\"}"', '{ }', '[]']);
  const data = memberSpans(text, members.get('b')!).get('data')!;
  expect(cut(text, data)).toBe('{ "n":12345678901234567890 }');
});

test('of a name that comes twice the last counts, as with JSON.parse', () => {
  const text = '{"a":1,"a":2}';
  expect(cut(text, memberSpans(text, valueSpan(text)).get('a')!)).toBe('2');
});

test('every element and member of any JSON is found', () => {
  const anyJson = fc.tuple(fc.array(fc.jsonValue()), fc.constantFrom(0, 2, '\t'));
  fc.assert(
    fc.property(anyJson, ([values, indent]) => {
      const text = JSON.stringify([values, { values }], null, indent);
      const [array, object] = elementSpans(text, valueSpan(text));
      const member = memberSpans(text, object!).get('values')!;
      for (const span of [array!, member]) {
        const found = elementSpans(text, span).map(
          (each) => JSON.parse(cut(text, each)) as unknown,
        );
        // -0 is written as 0
        expect(JSON.stringify(found)).toBe(JSON.stringify(values));
      }
    }),
  );
});
