import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

import { eventually } from './eventually.ts';
import { readProtobuf, type ReceivedSpan, type Values } from './otlp-protobuf.ts';

/** `hang`: requests are read and never answered; a number: that status. */
export type OtlpBehaviour = 'take' | 'hang' | number;

/** A collector: OTLP over HTTP, in protobuf and in JSON. */
export class OtlpReceiver implements AsyncDisposable {
  behaviour: OtlpBehaviour = 'take';
  /** What is taken of the next requests, as a partial success says it. */
  rejectedSpans = 0;
  readonly spans: ReceivedSpan[] = [];
  /** All that came, as it came. */
  readonly bodies: Buffer[] = [];
  readonly heads: { readonly path: string; readonly headers: IncomingMessage['headers'] }[] = [];
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => void this.#answer(request, response));
  }

  static async start(behaviour: OtlpBehaviour = 'take'): Promise<OtlpReceiver> {
    const receiver = new OtlpReceiver();
    receiver.behaviour = behaviour;
    receiver.#server.listen(0, '127.0.0.1');
    await once(receiver.#server, 'listening');
    return receiver;
  }

  /** For OTEL_EXPORTER_OTLP_ENDPOINT. */
  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  named(name: string): ReceivedSpan[] {
    return this.spans.filter((span) => span.name === name);
  }

  childrenOf({ traceId, spanId }: Pick<ReceivedSpan, 'traceId' | 'spanId'>): ReceivedSpan[] {
    return this.spans.filter((span) => span.traceId === traceId && span.parentSpanId === spanId);
  }

  /** Waits until so many spans of a name that fit are there (1), and returns them. */
  async spansNamed(
    name: string,
    {
      count = 1,
      fits = () => true,
    }: { count?: number; fits?: (span: ReceivedSpan) => boolean } = {},
  ): Promise<ReceivedSpan[]> {
    return eventually(
      () => {
        const found = this.named(name).filter(fits);
        if (found.length >= count) return found;
        const names = [...new Set(this.spans.map((span) => span.name))];
        throw new Error(`${found.length} of ${count} of '${name}'; there are ${names.join(', ')}`);
      },
      { what: `span ${name}`, timeoutMs: 30_000 },
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, 'close');
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    this.heads.push({ path: request.url ?? '', headers: request.headers });
    this.bodies.push(body);
    if (this.behaviour === 'hang') return;
    if (this.behaviour !== 'take') {
      response.writeHead(this.behaviour).end();
      return;
    }
    const isJson = request.headers['content-type'] === 'application/json';
    this.spans.push(...(isJson ? readJson(body) : readProtobuf(body)));
    response.setHeader('content-type', isJson ? 'application/json' : 'application/x-protobuf');
    response.end(isJson ? this.#partialJson() : this.#partialProtobuf());
  }

  #partialJson(): string {
    return this.rejectedSpans === 0
      ? '{}'
      : JSON.stringify({ partialSuccess: { rejectedSpans: this.rejectedSpans } });
  }

  /** ExportTraceServiceResponse: partial_success = 1, in it rejected_spans = 1. */
  #partialProtobuf(): Buffer {
    return Buffer.from(this.rejectedSpans === 0 ? [] : [0x0a, 2, 0x08, this.rejectedSpans]);
  }
}

interface JsonPair {
  readonly key: string;
  readonly value: {
    readonly stringValue?: string;
    readonly intValue?: string | number;
    readonly boolValue?: boolean;
    readonly doubleValue?: number;
  };
}

interface JsonSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes?: readonly JsonPair[];
  readonly events?: readonly { readonly name: string; readonly attributes?: readonly JsonPair[] }[];
  readonly links?: readonly {
    readonly traceId: string;
    readonly spanId: string;
    readonly attributes?: readonly JsonPair[];
  }[];
  readonly status?: { readonly code?: number; readonly message?: string };
}

interface JsonRequest {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes?: readonly JsonPair[] };
    readonly scopeSpans: readonly {
      readonly scope: { readonly name: string };
      readonly spans: readonly JsonSpan[];
    }[];
  }[];
}

function readJson(body: Buffer): ReceivedSpan[] {
  const { resourceSpans } = JSON.parse(body.toString('utf8')) as JsonRequest;
  return resourceSpans.flatMap(({ resource, scopeSpans }) =>
    scopeSpans.flatMap(({ scope, spans }) =>
      spans.map((span) => ({
        resource: valuesOf(resource.attributes),
        scope: scope.name,
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId ?? '',
        name: span.name,
        kind: span.kind,
        startedAt: BigInt(span.startTimeUnixNano),
        endedAt: BigInt(span.endTimeUnixNano),
        attributes: valuesOf(span.attributes),
        events: (span.events ?? []).map((each) => ({
          name: each.name,
          attributes: valuesOf(each.attributes),
        })),
        links: (span.links ?? []).map((each) => ({
          traceId: each.traceId,
          spanId: each.spanId,
          attributes: valuesOf(each.attributes),
        })),
        status: { code: span.status?.code ?? 0, message: span.status?.message ?? '' },
      })),
    ),
  );
}

function valuesOf(pairs: readonly JsonPair[] = []): Values {
  return Object.fromEntries(
    pairs.map(({ key, value }) => [
      key,
      value.stringValue ??
        value.boolValue ??
        value.doubleValue ??
        (value.intValue === undefined ? '' : Number(value.intValue)),
    ]),
  );
}
