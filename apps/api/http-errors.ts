import type { Socket } from 'node:net';
import { STATUS_CODES } from 'node:http';
import { randomUUID } from 'node:crypto';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Metrics } from '#runtime/metrics.ts';
import { Problem, problemBody, problemMediaType, sendProblem } from './problems.ts';

/** Answers what was no request that a route could have had: bad HTTP, headers too large, too slow. */
export function answerClientError(
  error: NodeJS.ErrnoException,
  socket: Socket,
  { recordHttpProblem }: Pick<Metrics, 'recordHttpProblem'>,
): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const problem = clientProblem(error.code);
  recordHttpProblem(problem.code);
  const body = problemBody(problem, { id: randomUUID(), path: '' });
  const head = [
    `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status] ?? ''}`,
    `content-type: ${problemMediaType}`,
    `content-length: ${Buffer.byteLength(body)}`,
    'cache-control: no-store',
    'connection: close',
  ];
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`);
}

function clientProblem(code: string | undefined): Problem {
  switch (code) {
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new Problem('request_timeout');
    case 'HPE_HEADER_OVERFLOW':
      return new Problem('headers_too_large');
    default:
      return new Problem('bad_request');
  }
}

/** Answers paths that there are not with 404, and methods that a path does not know with 405. Add it before the routes. */
export function addNotFoundHandler(app: FastifyInstance): void {
  const paths = new Map<string, { readonly pattern: RegExp; readonly methods: Set<string> }>();
  app.addHook('onRoute', ({ url, method }) => {
    if (url === '*') return;
    const path = paths.get(url) ?? { pattern: patternOf(url), methods: new Set() };
    for (const each of Array.isArray(method) ? method : [method]) path.methods.add(each);
    paths.set(url, path);
  });

  function allowed(request: FastifyRequest): string[] {
    const path = request.url.split('?', 1)[0] ?? '';
    const found = [...paths.values()].filter(({ pattern }) => pattern.test(path));
    return [...new Set(found.flatMap(({ methods }) => [...methods]))].toSorted();
  }

  app.setNotFoundHandler(async (request, reply) => {
    const methods = allowed(request);
    const problem =
      methods.length === 0
        ? new Problem('not_found')
        : new Problem('method_not_allowed', undefined, { headers: { allow: methods.join(', ') } });
    await sendProblem(request, reply, problem);
  });
}

function patternOf(url: string): RegExp {
  const parts = url
    .split('/')
    .map((part) => (part.startsWith(':') ? '[^/]+' : part.replaceAll('.', '\\.')));
  return new RegExp(`^${parts.join('/')}$`);
}
