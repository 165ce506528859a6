export type OtlpValue = string | number | boolean;
export type Values = Readonly<Record<string, OtlpValue>>;

export interface ReceivedSpan {
  /** Of the process, e.g. `service.name`. */
  readonly resource: Values;
  /** Who made it: `event-broker`, or an instrumentation. */
  readonly scope: string;
  readonly traceId: string;
  readonly spanId: string;
  /** Empty at the root. */
  readonly parentSpanId: string;
  readonly name: string;
  /** 1 internal, 2 server, 3 client, 4 producer, 5 consumer. */
  readonly kind: number;
  /** Nanoseconds since 1970. */
  readonly startedAt: bigint;
  readonly endedAt: bigint;
  readonly attributes: Values;
  readonly events: readonly { readonly name: string; readonly attributes: Values }[];
  readonly links: readonly {
    readonly traceId: string;
    readonly spanId: string;
    readonly attributes: Values;
  }[];
  /** 2 is an error. */
  readonly status: { readonly code: number; readonly message: string };
}

// The wire format of Protocol Buffers (https://protobuf.dev/programming-guides/encoding/), and as much of OTLP's
// ExportTraceServiceRequest as is looked at, by the numbers of its fields:
// https://github.com/open-telemetry/opentelemetry-proto/blob/v1.7.0/opentelemetry/proto/trace/v1/trace.proto

type Field = { readonly number: number; readonly value: bigint | Buffer };

function* fieldsOf(message: Buffer): Generator<Field> {
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = message[at++];
      if (byte === undefined) throw new Error('the message ends inside a number');
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  const take = (length: number): Buffer => {
    if (at + length > message.length) throw new Error('the message ends inside a field');
    at += length;
    return message.subarray(at - length, at);
  };
  while (at < message.length) {
    const tag = Number(varint());
    const number = tag >>> 3;
    switch (tag & 7) {
      case 0:
        yield { number, value: varint() };
        break;
      case 1:
        yield { number, value: take(8) };
        break;
      case 2:
        yield { number, value: take(Number(varint())) };
        break;
      case 5:
        yield { number, value: take(4) };
        break;
      default:
        throw new Error(`unknown wire type ${tag & 7}`);
    }
  }
}

class Message {
  readonly #fields: readonly Field[];

  constructor(bytes: Buffer) {
    this.#fields = [...fieldsOf(bytes)];
  }

  all(number: number): Buffer[] {
    const values = this.#fields.filter((field) => field.number === number);
    return values.map(({ value }) => value as Buffer);
  }

  messages(number: number): Message[] {
    return this.all(number).map((bytes) => new Message(bytes));
  }

  first(number: number): Field['value'] | undefined {
    return this.#fields.find((field) => field.number === number)?.value;
  }

  bytes(number: number): Buffer {
    return (this.first(number) as Buffer | undefined) ?? Buffer.alloc(0);
  }

  text(number: number): string {
    return this.bytes(number).toString('utf8');
  }

  integer(number: number): number {
    return Number((this.first(number) as bigint | undefined) ?? 0n);
  }

  get attributes(): { at: (number: number) => Record<string, OtlpValue> } {
    return {
      at: (number) =>
        Object.fromEntries(
          this.messages(number).map((pair) => [pair.text(1), valueOf(pair.messages(2)[0])]),
        ),
    };
  }
}

function valueOf(value: Message | undefined): OtlpValue {
  const text = value?.first(1);
  if (text !== undefined) return (text as Buffer).toString('utf8');
  const flag = value?.first(2);
  if (flag !== undefined) return flag === 1n;
  const integer = value?.first(3);
  if (integer !== undefined) return Number(BigInt.asIntN(64, integer as bigint));
  const double = value?.first(4);
  if (double !== undefined) return (double as Buffer).readDoubleLE();
  return '';
}

/** The spans of one request. */
export function readProtobuf(body: Buffer): ReceivedSpan[] {
  return new Message(body).messages(1).flatMap((resourceSpans) => {
    const resource = resourceSpans.messages(1)[0]?.attributes.at(1) ?? {};
    return resourceSpans
      .messages(2)
      .flatMap((scopeSpans) =>
        scopeSpans
          .messages(2)
          .map((span) => spanOf(span, resource, scopeSpans.messages(1)[0]?.text(1) ?? '')),
      );
  });
}

function spanOf(span: Message, resource: Record<string, OtlpValue>, scope: string): ReceivedSpan {
  const status = span.messages(15)[0];
  return {
    resource,
    scope,
    traceId: span.bytes(1).toString('hex'),
    spanId: span.bytes(2).toString('hex'),
    parentSpanId: span.bytes(4).toString('hex'),
    name: span.text(5),
    kind: span.integer(6),
    startedAt: span.bytes(7).readBigUInt64LE(),
    endedAt: span.bytes(8).readBigUInt64LE(),
    attributes: span.attributes.at(9),
    events: span.messages(11).map((event) => {
      return { name: event.text(2), attributes: event.attributes.at(3) };
    }),
    links: span.messages(13).map((link) => {
      const [traceId, spanId] = [link.bytes(1), link.bytes(2)];
      return {
        traceId: traceId.toString('hex'),
        spanId: spanId.toString('hex'),
        attributes: link.attributes.at(4),
      };
    }),
    status: { code: status?.integer(3) ?? 0, message: status?.text(2) ?? '' },
  };
}
