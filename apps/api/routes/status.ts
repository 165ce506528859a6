import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import Type from 'typebox';
import { readBacklogExtremes } from '#db/backlog-extremes.ts';
import { readStatus } from '#db/stats.ts';
import { version } from '#runtime/version.ts';
import { prefersHtml } from '../accept.ts';
import { requireAllTopics } from '../auth.ts';
import type { AppDependencies } from '../dependencies.ts';
import { problemKind } from '../problem-codes.ts';
import { createProblemHandler, type Problem, sendProblem } from '../problems.ts';
import { Status } from '../schemas/status.ts';
import { pagePolicy, renderProblemPage, renderStatusPage } from '../status-page.ts';
import { statusLimits, statusProblems } from '../status-problems.ts';

const subscriptionsMax = 20;

/** How the whole broker does: JSON, or a page where a browser asks. */
export function statusRoutes(app: FastifyInstance, deps: AppDependencies): void {
  const handleProblem = createProblemHandler(deps.logger, answerProblem);
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    '/api/status',
    {
      config: { scope: 'admin', acceptsBasic: true },
      schema: {
        tags: ['operation'],
        summary: 'What is wrong, processes, leader and backlog',
        description:
          'As a page for people where Accept prefers text/html. The key may then come as the password of Basic authentication, with any name.',
        response: {
          200: {
            description: 'As of the last sample of the leader, about a second ago',
            content: {
              'application/json': { schema: Status },
              'text/html': { schema: Type.String() },
            },
          },
        },
      },
      errorHandler: (error, request, reply) => void handleProblem(error, request, reply),
    },
    async (request, reply) => {
      requireAllTopics(request);
      const status = await lookAround(deps);
      varyByAccept(reply);
      if (!prefersHtml(request.headers.accept)) return status;
      return sendPage(reply, renderStatusPage(status));
    },
  );
}

async function lookAround({ config, db }: Pick<AppDependencies, 'config' | 'db'>): Promise<Status> {
  const { lateSeconds, pushDueSeconds } = statusLimits;
  const wanted = { limit: subscriptionsMax, lateSeconds, pushDueSeconds };
  const [seen, extremes] = await Promise.all([readStatus(db), readBacklogExtremes(db, wanted)]);
  const { processes, ...status } = seen;
  const { first, total } = extremes.most_waiting;
  return {
    problems: statusProblems(seen, extremes),
    version,
    instance: config.instance,
    ...status,
    processes: [...processes],
    subscriptions: [...first],
    subscriptions_total: total,
  };
}

/** A browser shows problems of JSON as a wall of text, and asks for a key only if it is told how. */
async function answerProblem(
  request: FastifyRequest,
  reply: FastifyReply,
  problem: Problem,
): Promise<void> {
  varyByAccept(reply);
  if (!prefersHtml(request.headers.accept)) {
    await sendProblem(request, reply, problem);
    return;
  }
  request.problemCode = problem.code;
  reply.code(problem.status).headers(problem.headers);
  if (problem.status === 401) {
    reply.header('www-authenticate', 'Basic realm="event-broker", charset="UTF-8"');
  }
  const { code, status, detail } = problem;
  const { title } = problemKind(code);
  await sendPage(reply, renderProblemPage({ title, detail, code, status, requestId: request.id }));
}

function sendPage(reply: FastifyReply, page: string): FastifyReply {
  return reply
    .header('content-security-policy', pagePolicy)
    .type('text/html; charset=utf-8')
    .send(page);
}

function varyByAccept(reply: FastifyReply): void {
  const others = reply.getHeader('vary');
  reply.header('vary', others === undefined ? 'accept' : `${String(others)}, accept`);
}
