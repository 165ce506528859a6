import { describe, expect, test } from 'vitest';
import {
  LIMITS,
  eventOf,
  faultsOf,
  many,
  nested,
  read,
  withMember,
} from '#test/support/publish-bodies.ts';

const HOSTILE: readonly (readonly [name: string, body: string | Buffer, ...faults: string[]])[] = [
  // The body as a whole
  ['empty', '', 'invalid_json '],
  ['white space alone', ' \n\t', 'invalid_json '],
  ['no JSON', 'hello', 'invalid_json '],
  ['a string', '"a"', 'invalid_event '],
  ['null', 'null', 'invalid_event '],
  ['an empty array', '[]', 'invalid_event '],
  ['an array of arrays', '[[]]', 'invalid_event /0'],
  ['an event in an array that is null', '[{"type":"a"},null]', 'invalid_event /1'],
  ['byte order mark', '\ufeff{"type":"a"}', 'invalid_json '],
  ['UTF-16', Buffer.from('{"type":"a"}', 'utf16le'), 'invalid_json '],
  ['a broken byte', Buffer.from('7b2274797065223a22ff227d', 'hex'), 'invalid_json '],
  ['an overlong form', Buffer.from('7b2274797065223a22c080227d', 'hex'), 'invalid_json '],
  ['a surrogate in UTF-8', Buffer.from('7b2274797065223a22eda080227d', 'hex'), 'invalid_json '],
  ['a cut character', Buffer.from('7b2274797065223a22e282', 'hex'), 'invalid_json '],
  ['text behind the event', '{"type":"a"} x', 'invalid_json '],
  ['two events without an array', '{"type":"a"}{"type":"b"}', 'invalid_json '],
  ['a comma at the end of the array', '[{"type":"a"},]', 'invalid_json /1'],
  ['no comma in the array', '[{"type":"a"}{"type":"b"}]', 'invalid_json '],
  ['an array without an end', '[{"type":"a"}', 'invalid_json '],
  ['more events than a body may hold', `[${many(1001, () => '{"type":"a"}')}]`, 'too_many_events '],
  // JSON that is none
  ['a comma at the end of the event', '{"type":"a",}', 'invalid_json '],
  ['a name without quotes', '{type:"a"}', 'invalid_json '],
  ['single quotes', "{'type':'a'}", 'invalid_json '],
  ['a comment', '{"type":"a"/**/}', 'invalid_json '],
  ['no colon', '{"type" "a"}', 'invalid_json '],
  ['no value', '{"type":}', 'invalid_json /type'],
  ['an event without an end', '{"type":"a"', 'invalid_json '],
  ['a string without an end', '{"type":"a', 'invalid_json /type'],
  ['a raw control character', '{"type":"a\nb"}', 'invalid_json /type'],
  ['a raw NUL', '{"type":"a\0b"}', 'invalid_json /type'],
  [
    'an escape that JSON does not know',
    withMember(String.raw`"data":"\x41"`),
    'invalid_json /data',
  ],
  ['an escape of three digits', withMember(String.raw`"data":"\u123"`), 'invalid_json /data'],
  ['NaN', withMember('"data":NaN'), 'invalid_json /data'],
  ['Infinity', withMember('"data":-Infinity'), 'invalid_json /data'],
  ['undefined', withMember('"data":undefined'), 'invalid_json /data'],
  ['a half literal', withMember('"data":tru'), 'invalid_json /data'],
  ['a long literal', withMember('"data":nulll'), 'invalid_json '],
  ['a leading zero', withMember('"data":01'), 'invalid_json '],
  ['a plus sign', withMember('"data":+1'), 'invalid_json /data'],
  ['no digit before the point', withMember('"data":.5'), 'invalid_json /data'],
  ['no digit behind the point', withMember('"data":[1.]'), 'invalid_json /data'],
  ['no digit in the exponent', withMember('"data":1e+'), 'invalid_json /data'],
  ['a minus alone', withMember('"data":-'), 'invalid_json /data'],
  ['hexadecimal', withMember('"data":0x10'), 'invalid_json '],
  ['a comma at the end inside data', withMember('"data":[1,]'), 'invalid_json /data'],
  ['brackets that do not match', withMember('"data":[{]}'), 'invalid_json /data'],
  ['a bracket where a brace belongs', withMember('"data":{"a":1]'), 'invalid_json /data'],
  ['a no-break space between tokens', withMember('\u00a0"data":1'), 'invalid_json '],
  [
    'a syntax error behind other faults',
    '[{"type":""},{"x":1},{"type"]',
    'invalid_event /0/type',
    'invalid_event /1/x',
    'invalid_event /1/type',
    'invalid_json /2',
  ],
  // The envelope
  ['no type', '{}', 'invalid_event /type'],
  [
    'several faults',
    '[{"type":1},{"type":"a"},{"id":""}]',
    'invalid_event /0/type',
    'invalid_event /2/id',
    'invalid_event /2/type',
  ],
  [
    'an unknown member',
    withMember('"nonsense_member":{"a":[1]}'),
    'invalid_event /nonsense_member',
  ],
  ['a member that needs escapes in a pointer', withMember('"a/b~c":1'), 'invalid_event /a~1b~0c'],
  ['specversion', withMember('"specversion":"1.0"'), 'invalid_event /specversion'],
  ['__proto__', withMember('"__proto__":{"type":"b"}'), 'invalid_event /__proto__'],
  ['constructor', withMember('"constructor":1'), 'invalid_event /constructor'],
  ['prototype', withMember('"prototype":1'), 'invalid_event /prototype'],
  ['a member twice', '{"type":"a","type":"a"}', 'invalid_event /type'],
  [
    'a member twice, once in disguise',
    String.raw`{"type":"a","\u0074ype":"b"}`,
    'invalid_event /type',
  ],
  ['data twice', withMember('"data":1,"data":1'), 'invalid_event /data'],
  ['null for an attribute', withMember('"subject":null'), 'invalid_event /subject'],
  ['an object for an attribute', withMember('"id":{"a":1}'), 'invalid_event /id'],
  ['a long type', `{"type":"${'a'.repeat(257)}"}`, 'invalid_event /type'],
  ['a type too long beyond the BMP', `{"type":"${'🐘'.repeat(257)}"}`, 'invalid_event /type'],
  [
    'a control character in an attribute',
    withMember(String.raw`"subject":"a\u0000b"`),
    'invalid_event /subject',
  ],
  ['DEL in an attribute', withMember('"subject":"a\u007fb"'), 'invalid_event /subject'],
  ['a C1 character in an attribute', withMember('"subject":"a\u0085b"'), 'invalid_event /subject'],
  ['a noncharacter in an attribute', withMember('"subject":"a\uffffb"'), 'invalid_event /subject'],
  [
    'a lone surrogate in an attribute',
    withMember(String.raw`"subject":"a\ud800b"`),
    'invalid_event /subject',
  ],
  ['white space in source', withMember('"source":"/a b"'), 'invalid_event /source'],
  ['a broken percent escape in source', withMember('"source":"/a%2"'), 'invalid_event /source'],
  [
    'dataschema without a scheme',
    withMember('"dataschema":"/schema"'),
    'invalid_event /dataschema',
  ],
  [
    'datacontenttype without a slash',
    withMember('"datacontenttype":"json"'),
    'invalid_event /datacontenttype',
  ],
  [
    'traceparent of zeros',
    withMember(`"traceparent":"00-${'0'.repeat(32)}-b7ad6b7169203331-01"`),
    'invalid_event /traceparent',
  ],
  [
    'traceparent in upper case',
    withMember('"traceparent":"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"'),
    'invalid_event /traceparent',
  ],
  ['tracestate without a value', withMember('"tracestate":"a"'), 'invalid_event /tracestate'],
  [
    'a long tracestate',
    withMember(`"tracestate":"a=${'b'.repeat(511)}"`),
    'invalid_event /tracestate',
  ],
  ['delay_seconds as a string', withMember('"delay_seconds":"5"'), 'invalid_event /delay_seconds'],
  ['negative delay_seconds', withMember('"delay_seconds":-0.001'), 'invalid_event /delay_seconds'],
  [
    'delay_seconds beyond 30 days',
    withMember('"delay_seconds":2592000.001'),
    'invalid_event /delay_seconds',
  ],
  [
    'delay_seconds beyond a double',
    withMember('"delay_seconds":1e999999'),
    'invalid_event /delay_seconds',
  ],
  [
    'delay and due time',
    withMember('"delay_seconds":1,"available_at":"2030-01-01T00:00:00Z"'),
    'invalid_event /available_at',
  ],
  // extensions
  ['extensions as an array', withMember('"extensions":[]'), 'invalid_event /extensions'],
  [
    'an extension in upper case',
    withMember('"extensions":{"Tenant":"a"}'),
    'invalid_event /extensions/Tenant',
  ],
  [
    'an extension without a name',
    withMember('"extensions":{"":"a"}'),
    'invalid_event /extensions/',
  ],
  [
    'a long extension name',
    withMember(`"extensions":{"${'a'.repeat(21)}":1}`),
    `invalid_event /extensions/${'a'.repeat(21)}`,
  ],
  [
    'an extension named as an attribute',
    withMember('"extensions":{"type":"a"}'),
    'invalid_event /extensions/type',
  ],
  [
    'brokereventid',
    withMember('"extensions":{"brokereventid":"1"}'),
    'invalid_event /extensions/brokereventid',
  ],
  [
    '__proto__ in extensions',
    withMember('"extensions":{"__proto__":"a"}'),
    'invalid_event /extensions/__proto__',
  ],
  [
    'constructor in extensions',
    withMember('"extensions":{"constructor":"a"}'),
    'invalid_event /extensions/constructor',
  ],
  ['an extension twice', withMember('"extensions":{"a":1,"a":1}'), 'invalid_event /extensions/a'],
  ['null for an extension', withMember('"extensions":{"a":null}'), 'invalid_event /extensions/a'],
  [
    'a fraction for an extension',
    withMember('"extensions":{"a":1.5}'),
    'invalid_event /extensions/a',
  ],
  [
    '33 bits for an extension',
    withMember('"extensions":{"a":2147483648}'),
    'invalid_event /extensions/a',
  ],
  [
    'an object for an extension',
    withMember('"extensions":{"a":{}}'),
    'invalid_event /extensions/a',
  ],
  [
    'a syntax error in an extension',
    withMember('"extensions":{"a":tru}'),
    'invalid_json /extensions/a',
  ],
  [
    'a lone surrogate in an extension',
    withMember(String.raw`"extensions":{"a":"\udc00"}`),
    'invalid_event /extensions/a',
  ],
  [
    '65 extensions',
    withMember(`"extensions":{${many(65, (i) => `"x${i}":1`)}}`),
    'invalid_event /extensions',
  ],
  // data
  ['NUL in data', withMember(String.raw`"data":{"a":"\u0000"}`), 'invalid_event /data'],
  ['NUL in a name inside data', withMember(String.raw`"data":{"\u0000":1}`), 'invalid_event /data'],
  ['half a pair in data', withMember(String.raw`"data":["\ud83d"]`), 'invalid_event /data'],
  [
    'a pair the wrong way round',
    withMember(String.raw`"data":"\udc18\ud83d"`),
    'invalid_event /data',
  ],
  ['a pair half raw', withMember(`"data":"\\ud83d\u{1f418}"`), 'invalid_event /data'],
  [
    'both in one of an array',
    `[{"type":"a"},${withMember(String.raw`"data":"\u0000\udead"`)}]`,
    'invalid_event /1/data',
    'invalid_event /1/data',
  ],
  ['data nested too deep', withMember(`"data":${nested(129)}`), 'invalid_event /data'],
  ['an unknown member nested too deep', withMember(`"x":${nested(5000)}`), 'invalid_event /x'],
];

describe('a hostile body', () => {
  test.each(HOSTILE)('%s', (_name, body, ...faults) => {
    expect(faultsOf(body)).toEqual(faults);
  });

  test('too large an event is pointed at, its neighbours are not', () => {
    const limits = { ...LIMITS, eventBytesMax: 20 };
    expect(
      faultsOf(
        '[{"type":"a","data":"0123456789abcdef"},{"type":"ab","data":"0123456789abcdefg"}]',
        limits,
      ),
    ).toEqual(['event_too_large /1']);
    expect(faultsOf('{"type":"a","data":"ääääääää0"}', limits)).toEqual([]);
    expect(faultsOf('{"type":"a","data":"ääääääääää"}', limits)).toEqual(['event_too_large ']);
    expect(faultsOf('{"type":"a","extensions":{"tenant":"0123456789abcd"}}', limits)).toEqual([
      'event_too_large ',
    ]);
  });

  test('no more than 20 faults are gathered', () => {
    expect(faultsOf(`[${many(100, () => '{"x":1}')}]`)).toHaveLength(20);
    expect(faultsOf(`{${many(100, () => '"__proto__":1')}}`)).toHaveLength(20);
  });

  test('a fault helps: hint and byte offset', () => {
    const detail = (body: string): string => {
      const result = read(body);
      return 'faults' in result ? (result.faults[0]?.detail ?? '') : '';
    };
    expect(detail(withMember('"tenant":"x"'))).toContain('into extensions');
    expect(detail(withMember('"orderingKey":"x"'))).toContain('ordering_key');
    expect(detail(withMember('"specversion":"1.0"'))).toContain('leave it out');
    expect(detail(withMember('"constructor":1'))).not.toContain('extension');
    expect(detail('{"type":"ä",x')).toBe(
      'Byte 13 is 0x78, where a name in double quotes was expected.',
    );
  });
});

describe('times', () => {
  test.each([
    '2025-01-31T12:00:00Z',
    '2024-02-29t00:00:00.123456789z',
    '2000-02-29T23:59:59+14:00',
    '2016-12-31T23:59:60Z',
    '2017-01-01T08:59:60+09:00',
    '0001-01-01T00:00:00Z',
    '9999-12-31T23:59:59.999999Z',
    '2025-06-01T00:00:00-00:00',
    '0099-12-31T00:00:00Z',
  ])('%s passes as it is', (time) => {
    expect(eventOf(withMember(`"time":"${time}"`)).time).toBe(time);
  });
  test.each([
    '2025-02-31T00:00:00Z',
    '2025-02-29T00:00:00Z',
    '1900-02-29T00:00:00Z',
    '2025-04-31T00:00:00Z',
    '2025-13-01T00:00:00Z',
    '2025-00-01T00:00:00Z',
    '2025-01-00T00:00:00Z',
    '2025-01-01T24:00:00Z',
    '2025-01-01T00:60:00Z',
    '2025-01-01T12:00:60Z',
    '2016-12-31T23:59:60.5Z',
    '2025-01-01T00:00:61Z',
    '2025-01-01T00:00:00',
    '2025-01-01 00:00:00Z',
    '2025-01-01',
    'now',
    'infinity',
    '2025-01-01T00:00:00+24:00',
    '2025-01-01T00:00:00+16:00',
    '2025-01-01T00:00:00+0100',
    '2025-01-01T00:00:00.Z',
    '0000-01-01T00:00:00Z',
    '0001-01-01T00:00:00+00:01',
    '9999-12-31T23:59:00-00:01',
    '9999-12-31T23:59:60Z',
    '9999-12-31T23:59:59.9999999Z',
    '10000-01-01T00:00:00Z',
    '2025-1-1T00:00:00Z',
    `2025-01-01T00:00:00.${'0'.repeat(64)}Z`,
  ])('%s is refused', (time) => {
    expect(faultsOf(withMember(`"time":"${time}"`))).toEqual(['invalid_event /time']);
    expect(faultsOf(withMember(`"available_at":"${time}"`))).toEqual([
      'invalid_event /available_at',
    ]);
  });
});
