import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import { faultOf } from '#db/errors.ts';
import type { Logger } from '#runtime/logger.ts';
import { type ProblemCode, problemKind } from './problem-codes.ts';

export type { ProblemCode };

/** One thing that is wrong with a request: a member of the body by its JSON pointer, or a parameter by its name. */
export interface ProblemError {
  readonly detail: string;
  /** RFC 6901: '' is the whole body. */
  readonly pointer?: string;
  /** Of the path or the query. */
  readonly parameter?: string;
}

export interface ProblemOptions {
  readonly errors?: readonly ProblemError[];
  /** Instead of what the code says by itself. */
  readonly retryAfterSeconds?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly cause?: unknown;
}

/** What is thrown to refuse a request: the caller's fault, or overload. Everything else that is thrown is a defect. */
export class Problem extends Error {
  override name = 'Problem';
  readonly code: ProblemCode;
  readonly status: number;
  readonly detail: string | undefined;
  readonly errors: readonly ProblemError[];
  readonly headers: Readonly<Record<string, string>>;

  constructor(code: ProblemCode, detail?: string, options: ProblemOptions = {}) {
    const kind = problemKind(code);
    super(detail ?? kind.title, { cause: options.cause });
    const retryAfter = options.retryAfterSeconds ?? kind.retryAfterSeconds;
    this.code = code;
    this.status = kind.status;
    this.detail = detail;
    this.errors = options.errors ?? [];
    this.headers = {
      ...(retryAfter === undefined
        ? {}
        : { 'retry-after': String(Math.max(1, Math.ceil(retryAfter))) }),
      ...options.headers,
    };
  }
}

/** A member of the body that is wrong, by its JSON pointer. */
export function invalidRequest(detail: string, pointer: string): Problem {
  return new Problem('invalid_request', detail, { errors: [{ detail, pointer }] });
}

export const problemMediaType = 'application/problem+json';

/** The body of a problem: RFC 9457, with `code`, `request_id` and `errors` beside its own members. */
export function problemBody(problem: Problem, request: { id: string; path: string }): string {
  return JSON.stringify({
    type: `urn:problem-type:event-broker:${problem.code}`,
    title: problemKind(problem.code).title,
    status: problem.status,
    detail: problem.detail,
    instance: request.path,
    code: problem.code,
    request_id: request.id,
    errors: problem.errors.length === 0 ? undefined : problem.errors,
  });
}

/** Answers with a problem. */
export async function sendProblem(
  request: FastifyRequest,
  reply: FastifyReply,
  problem: Problem,
): Promise<void> {
  request.problemCode = problem.code;
  const path = request.url.split('?', 1)[0] ?? '';
  await reply
    .code(problem.status)
    .headers(problem.headers)
    .type(problemMediaType)
    .send(problemBody(problem, { id: request.id, path }));
}

/**
 * The one handler of everything that is thrown. What nobody foresaw is logged, and answered without a word of it.
 * @param send how it is answered, where that is not by a problem's own JSON
 */
export function createProblemHandler(logger: Pick<Logger, 'error'>, send = sendProblem) {
  return async (error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> => {
    const problem = problemOf(error, request);
    if (problem.code === 'internal_error') {
      const route = request.routeOptions.url;
      logger.error({ err: error, request_id: request.id, method: request.method, route }, 'defect');
    }
    await send(request, reply, problem);
  };
}

/** Sorts what was thrown. */
export function problemOf(error: unknown, request: Pick<FastifyRequest, 'method'>): Problem {
  if (error instanceof Problem) return error;
  if (isFrameworkError(error)) {
    const problem = frameworkProblem(error);
    if (problem !== undefined) return problem;
  }
  return databaseProblem(error, request.method) ?? new Problem('internal_error');
}

function isFrameworkError(error: unknown): error is FastifyError {
  return (
    error instanceof Error &&
    ('statusCode' in error || ('code' in error && String(error.code).startsWith('FST_')))
  );
}

function frameworkProblem(error: FastifyError): Problem | undefined {
  if (error.validation !== undefined) return validationProblem(error);
  switch (error.code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new Problem('body_too_large', undefined, { headers: { connection: 'close' } });
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new Problem('unsupported_media_type', 'The body must be application/json.');
    case 'FST_ERR_CTP_EMPTY_JSON_BODY':
    case 'FST_ERR_CTP_INVALID_JSON_BODY':
      return new Problem('invalid_json', undefined, {
        errors: [{ detail: 'The body is empty or no JSON.', pointer: '' }],
      });
    case 'FST_ERR_HANDLER_TIMEOUT':
      return new Problem('handler_timeout');
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new Problem('request_timeout');
    default: {
      const status = error.statusCode ?? 500;
      return status >= 400 && status < 500 ? new Problem('bad_request') : undefined;
    }
  }
}

type ValidationError = NonNullable<FastifyError['validation']>[number] & {
  /** Of a name that is wrong, beside the keyword that it offends against. */
  readonly propertyName?: string;
};

function validationProblem(error: FastifyError): Problem {
  const isBody = error.validationContext === 'body';
  const errors = (error.validation ?? []).slice(0, 1).map((each): ProblemError => {
    const pointer = pointerOf(each);
    const name = decodePointer(pointer.split('/').at(-1) ?? '');
    const detail = `${name === '' ? 'The body' : name} ${messageOf(each)}.`;
    return isBody ? { detail, pointer } : { detail, parameter: name };
  });
  return new Problem('invalid_request', errors[0]?.detail, { errors });
}

function pointerOf({ instancePath, params, propertyName }: ValidationError): string {
  // of an array where TypeBox checks, of one name where Ajv does
  const [member] = [
    propertyName ??
      params['missingProperty'] ??
      params['requiredProperties'] ??
      params['additionalProperty'] ??
      params['additionalProperties'],
  ].flat();
  return typeof member === 'string' ? pointerTo(instancePath, member) : instancePath;
}

/** The pointer to a member of what another pointer names. */
export function pointerTo(parent: string, name: string): string {
  return `${parent}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

function decodePointer(token: string): string {
  return token.replaceAll('~1', '/').replaceAll('~0', '~');
}

function messageOf({ keyword, params, message, propertyName }: ValidationError): string {
  if (propertyName !== undefined) return 'is no name that may be given here';
  switch (keyword) {
    case 'required':
      return 'must be given';
    case 'additionalProperties':
      return 'is not known here';
    case 'enum':
      return `must be one of ${(params['allowedValues'] as unknown[] | undefined)?.join(', ') ?? 'the known values'}`;
    default:
      return message ?? 'is not valid';
  }
}

const safeMethods = ['GET', 'HEAD', 'OPTIONS'];

function databaseProblem(error: unknown, method: string): Problem | undefined {
  const fault = faultOf(error);
  switch (fault) {
    case 'unavailable':
      return new Problem('database_unavailable', 'Nothing was changed.', { cause: error });
    case 'outcome_unknown':
      return safeMethods.includes(method)
        ? new Problem('database_unavailable', undefined, { cause: error })
        : new Problem('outcome_unknown', outcomeUnknown[method] ?? outcomeUnknown['POST'], {
            cause: error,
          });
    case 'lock_timeout':
    case 'statement_timeout':
    case 'conflict':
    case 'missing_partition':
      return new Problem('database_busy', 'Nothing was changed.', { cause: error });
    case 'term_over':
    case 'worker_gone':
    case 'no_subscription':
    case 'job_unfinished':
    case 'defect':
      return undefined;
  }
}

const outcomeUnknown: Readonly<Record<string, string>> = {
  PUT: 'It may have been done or not; to repeat it is safe.',
  PATCH: 'It may have been done or not; to repeat it is safe.',
  DELETE: 'It may have been done or not; to repeat it is safe.',
  POST: 'It may have been done or not; look before you repeat it.',
};

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Problems of this route, beside those that every route of its kind has; for the OpenAPI document. */
    problems?: readonly ProblemCode[];
  }
  interface FastifyRequest {
    /** Set once the request was answered with a problem; for the access log. */
    problemCode: ProblemCode | undefined;
  }
}
