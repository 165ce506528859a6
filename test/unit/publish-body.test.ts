import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { eventOf, faultsOf, many, nested, read, withMember } from '#test/support/publish-bodies.ts';

const MIB = 1024 * 1024;

describe('an event', () => {
  test('has all that was sent and nothing else', () => {
    const whole = {
      type: 'order.created',
      id: 'a-1',
      source: '/shop?x=%20',
      subject: 'Straße 🐘',
      time: '2025-01-01T00:00:00Z',
      datacontenttype: 'application/json; charset=utf-8',
      dataschema: 'https://example.org/s',
      ordering_key: 'k',
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      tracestate: 'a=b, t@v=c',
      extensions: { tenant: '', count: -2_147_483_648, zero: 0, ok: false, valueof: 'x' },
    };
    const body = JSON.stringify({ ...whole, delay_seconds: 1.1, data: { a: 1 } });
    expect(eventOf(body)).toEqual({
      ...whole,
      delay_ms: 1100,
      data: '{"a":1}',
      bytes: expect.any(Number) as number,
    });
    expect(eventOf('{"type":"a"}')).toEqual({ type: 'a', bytes: 1 });
    expect(eventOf('{"\\u0074ype":"\\u00e4\\ud83d\\udc18"}')).toEqual({ type: 'ä🐘', bytes: 6 });
    expect(eventOf(withMember('"delay_seconds":-0')).delay_ms).toBe(0);
    expect(eventOf(`{"type":"${'🐘'.repeat(256)}"}`).bytes).toBe(1024);
  });

  test('comes alone or among up to 1,000', () => {
    expect(read(' [ {"type":"a"} ]\n')).toEqual({
      events: [{ type: 'a', bytes: 1 }],
      single: false,
    });
    expect(read(`[${many(1000, (i) => `{"type":"t${i}"}`)}]`)).toMatchObject({ single: false });
  });

  test.each([
    '9007199254740993',
    '1e999999',
    '-0',
    '1.0',
    '1.10E+05',
    '123456789012345678901234567890.000',
    `1${'0'.repeat(5000)}`,
    'null',
    'false',
    '""',
    '[]',
    '{}',
    '{"b":1,"a":2,"10":3,"9":4}',
    '{"a":1,"a":2,"a":1}',
    '{"__proto__":{"x":1},"constructor":null,"__proto__":2}',
    '[ 1 ,\t2\r\n]',
    String.raw`"\u0041\/\n\ud83d\udc18\u007f"`,
    '"ä🐘\u007f\uffff\u2028"',
    '{"":[{"":{}}]}',
    nested(128),
  ])('carries the text of data untouched: %s', (data) => {
    expect(eventOf(`{"type":"ä","data" : ${data} }`).data).toBe(data);
    expect(
      read(`[${withMember(`"data":${data}`)},${withMember(`"data":${data}\n`)}]`),
    ).toMatchObject({
      events: [{ data }, { data }],
    });
  });
});

describe('compared with JSON.parse', () => {
  const space = fc.stringMatching(/^[ \t\r\n]{0,3}$/);
  const text = fc.string({ unit: 'binary', maxLength: 12 });

  /** JSON text with random white space, escapes and spellings of numbers. */
  const json = fc.letrec<{ value: string }>((tie) => ({
    value: fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      fc.constantFrom('null', 'true', 'false', '-0', '1.0', '1E+2', '12345678901234567890'),
      fc.double({ noNaN: true, noDefaultInfinity: true }).map((number) => JSON.stringify(number)),
      fc.tuple(text, fc.boolean()).map(([value, ascii]) => quoted(value, ascii)),
      fc
        .tuple(fc.array(fc.tuple(space, tie('value'), space)), space)
        .map(([items, empty]) => `[${items.map((item) => item.join('')).join(',') || empty}]`),
      fc
        .tuple(
          fc.array(
            fc.tuple(
              space,
              text.map((name) => quoted(name, false)),
              space,
              fc.constant(':'),
              space,
              tie('value'),
              space,
            ),
          ),
          space,
        )
        .map(([items, empty]) => `{${items.map((item) => item.join('')).join(',') || empty}}`),
    ),
  })).value;

  function quoted(value: string, ascii: boolean): string {
    const out = JSON.stringify(value);
    return ascii
      ? out.replaceAll(
          /[^ -~]/g,
          (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
        )
      : out;
  }

  test('the text of data is the slice that went in', () => {
    fc.assert(
      fc.property(json, space, space, (data, before, behind) => {
        fc.pre(!/\\u0000/.test(data));
        expect(eventOf(`{"data":${before}${data}${behind},"type":"a"}`).data).toBe(data);
      }),
      { numRuns: 1000 },
    );
  });

  test('a text that was tampered with is taken exactly if JSON.parse takes it and it can be stored', () => {
    const junk = fc.constantFrom(
      '"',
      '\\',
      ',',
      ':',
      '[',
      ']',
      '{',
      '}',
      '0',
      '-',
      '.',
      'e',
      ' ',
      '\u0001',
      '\\u',
      'ä',
      'null',
      '\\ud800',
      '\\u0000',
      '/',
    );
    fc.assert(
      fc.property(json, fc.nat(), fc.nat(3), junk, (data, place, drop, insert) => {
        const chars = Array.from(data);
        chars.splice(place % (chars.length + 1), drop, insert);
        const tampered = chars.join('');
        const faults = faultsOf(`[${withMember(`"data":[${tampered}]`)}]`);
        const verdict = verdictOf(`[${tampered}]`);
        expect(faults.some((fault) => fault.startsWith('invalid_json'))).toBe(
          verdict === 'invalid',
        );
        expect(faults.length === 0).toBe(verdict === 'fine');
      }),
      { numRuns: 3000 },
    );
  });

  test('every byte at every kind of place', () => {
    const places = [
      '"a|b"',
      String.raw`"\|"`,
      String.raw`"\u00|0"`,
      '[|]',
      '[1|2]',
      '[1|]',
      '-|',
      '1.|',
      '1e|1',
      '{|"a":1}',
      '{"a"|:1}',
      '[tru|]',
      '[1|',
      '{"a":1|',
    ];
    for (const [at, place] of places.entries()) {
      for (let byte = 0; byte < 128; byte += 1) {
        const data = place.replace('|', () => String.fromCharCode(byte));
        expect([at, byte, faultsOf(withMember(`"data":${data}`)).length === 0]).toEqual([
          at,
          byte,
          verdictOf(data) === 'fine',
        ]);
      }
    }
  });

  /** The same question asked the slow way. */
  function verdictOf(data: string): 'invalid' | 'refused' | 'fine' {
    let parsed: unknown;
    let bad = false;
    try {
      parsed = JSON.parse(data, (name, value: unknown) => {
        bad ||= [name, value].some(
          (part) => typeof part === 'string' && (part.includes('\0') || !part.isWellFormed()),
        );
        return value;
      });
    } catch {
      return 'invalid';
    }
    // A duplicate key hides its first value from the reviver: look at the text as well.
    bad ||= /\\u0000/.test(data.replaceAll('\\\\', '--')) || !lonelyFree(data);
    return parsed !== undefined && bad ? 'refused' : 'fine';
  }

  function lonelyFree(data: string): boolean {
    return (
      data
        .replaceAll('\\\\', '--')
        .replaceAll(/\\ud[89ab]..\\ud[c-f]../gi, '')
        .search(/\\ud[89a-f]../i) < 0
    );
  }
});

describe('8 MiB of nothing good end in time', () => {
  const size = 8 * MIB;
  const fill = (head: string, unit: string): Buffer =>
    Buffer.from(head + unit.repeat(Math.floor(size / unit.length)));
  test.each([
    ['arrays', fill('', '['), 'invalid_event /0'],
    ['arrays in data', fill('{"type":"a","data":', '['), 'invalid_event /data'],
    ['objects in data', fill('{"type":"a","data":', '{"a":'), 'invalid_event /data'],
    ['empty arrays', fill('{"type":"a","data":[', '[],'), 'invalid_json /data'],
    ['escapes', fill('{"type":"a","data":"', '\\\\'), 'invalid_json /data'],
    ['half pairs', fill('{"type":"a","data":"', '\\ud800'), 'invalid_json /data'],
    [
      'escapes in a type',
      Buffer.concat([fill('{"type":"', '\\ud83d\\udc18'), Buffer.from('"}')]),
      'invalid_event /type',
    ],
    [
      'escapes in an extension',
      Buffer.concat([
        fill('{"type":"a","extensions":{"a":"', '\\ud83d\\udc18'),
        Buffer.from('"}}'),
      ]),
      'event_too_large ',
    ],
    ['long names', fill('{', `"${'a'.repeat(MIB - 6)}":1,`), 'invalid_event '],
    ['names in data', fill('{"type":"a","data":{', '"a":1,'), 'invalid_json /data'],
    ['extensions', fill('{"type":"a","extensions":{', '"a":1,'), 'invalid_event /extensions/a'],
    ['white space', fill('', ' '), 'invalid_json '],
    ['digits', fill('{"type":"a","delay_seconds":', '9'), 'invalid_event /delay_seconds'],
    ['empty events', fill('[', '{},'), 'invalid_event /0/type'],
    ['characters beyond ASCII', fill('{"type":"a","source":"', '🐘'), 'invalid_json /source'],
  ])('%s', (_name, body, first) => {
    const started = performance.now();
    expect(faultsOf(body)[0]).toBe(first);
    expect(performance.now() - started).toBeLessThan(3000);
  });
});
