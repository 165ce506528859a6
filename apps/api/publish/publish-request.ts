import type { IncomingHttpHeaders } from 'node:http';
import type { NewEvent, PublishRequest } from '#db/publish.ts';
import { defaultSource } from '#runtime/cloudevents.ts';
import { activeTrace } from '#runtime/tracing.ts';
import type { DirectoryTopic } from '../directory.ts';
import { MEMBER_BY_NAME } from './event-attributes.ts';
import { eventKey, readIdempotencyKey, requestKey } from './idempotency.ts';
import { Problem, type ProblemError } from '../problems.ts';
import type { EventInput, PublishBody } from './publish-body.ts';
import type { EventResult, PublishAnswer } from './publisher.ts';

type PublishTopic = Pick<DirectoryTopic, 'name' | 'deduplicate_event_ids'>;

interface RequestContext {
  readonly topic: PublishTopic;
  readonly body: Buffer;
  readonly headers: IncomingHttpHeaders;
}

/**
 * What is stored of a request: its events, with the keys that make them idempotent and the trace that they belong to: an
 * event's own, else the caller's, else that of the active span.
 */
export function toPublishRequest(
  events: readonly EventInput[],
  context: RequestContext,
): PublishRequest {
  const { body, headers, topic } = context;
  const trace = traceOf(headers) ?? activeTrace();
  const newEvents = events.map((event) => toNewEvent(event, topic, trace));
  const header = headers['idempotency-key'];
  if (header === undefined) return { events: newEvents };
  const key = typeof header === 'string' ? readIdempotencyKey(header) : undefined;
  if (key === undefined) {
    const detail =
      'Idempotency-Key must be given once and have 1 to 255 visible ASCII characters, in quotes or not.';
    throw new Problem('invalid_request', detail, {
      errors: [{ detail, parameter: 'Idempotency-Key' }],
    });
  }
  return { events: newEvents, ...requestKey(key, body) };
}

type Trace = Pick<NewEvent, 'traceparent' | 'tracestate'>;

function toNewEvent(event: EventInput, topic: PublishTopic, trace: Trace | undefined): NewEvent {
  const { extensions, ...attributes } = event;
  const stored: { -readonly [Key in keyof NewEvent]: NewEvent[Key] } = attributes;
  for (const _ in extensions) {
    stored.extensions = JSON.stringify(extensions);
    break;
  }
  if (trace !== undefined && event.traceparent === undefined) Object.assign(stored, trace);
  if (event.id !== undefined && topic.deduplicate_event_ids) {
    Object.assign(stored, eventKey(event, event.id, defaultSource(topic.name)));
  }
  return stored;
}

/** W3C Trace Context section 3.2: what is not valid is ignored, and its tracestate with it. */
export function traceOf({ traceparent, tracestate }: IncomingHttpHeaders): Trace | undefined {
  if (!isAttribute('traceparent', traceparent)) return undefined;
  return isAttribute('tracestate', tracestate) ? { traceparent, tracestate } : { traceparent };
}

/** Whether a header could be the attribute of the same name. */
function isAttribute(name: 'traceparent' | 'tracestate', value: unknown): value is string {
  const member = MEMBER_BY_NAME.get(name);
  if (typeof value !== 'string' || value === '' || member?.kind !== 'text') return false;
  return value.length <= member.max && member.check?.(value) === undefined;
}

interface AnswerText {
  readonly json: string;
  readonly location?: string;
}

/** The body of the 202. Throws the problem where the request as a whole was refused. */
export function answerOf(
  answer: PublishAnswer,
  { events, single }: PublishBody,
  topic: PublishTopic,
): AnswerText {
  if (answer.status !== 'published') throw refusalProblem(answer.status, topic);
  const { results } = answer;
  const [first] = results;
  if (first?.outcome === 'request_conflict') throw requestConflict();
  if (first?.outcome === 'too_far') throw tooFar(events, single);
  if (!single) return { json: `{"results":[${results.map(resultJson).join(',')}]}` };
  if (first === undefined || first.outcome === 'conflict') {
    throw new Problem('idempotency_conflict', eventConflict, {
      errors: [{ detail: eventConflict, pointer: '/id' }],
    });
  }
  return { json: resultJson(first), location: `/api/v1/topics/${topic.name}/events/${first.id}` };
}

function resultJson({ id, outcome }: EventResult): string {
  if (outcome === 'conflict') return conflictJson;
  return `{"id":"${id}","duplicate":${outcome === 'duplicate'}}`;
}

const eventConflict =
  'An event with the same source and id, and with other content, was published before.';
const conflictJson = JSON.stringify({ code: 'idempotency_conflict', detail: eventConflict });

function requestConflict(): Problem {
  const detail = 'The Idempotency-Key was used before with another body.';
  return new Problem('idempotency_conflict', detail, {
    errors: [{ detail, parameter: 'Idempotency-Key' }],
  });
}

/** The database says of a request that something in it is too far ahead; that is the latest for sure. */
function tooFar(events: readonly EventInput[], single: boolean): Problem {
  let latest = 0;
  let at = -Infinity;
  for (const [index, { available_at: availableAt }] of events.entries()) {
    const time = availableAt === undefined ? Number.NaN : Date.parse(availableAt);
    if (time > at) [latest, at] = [index, time];
  }
  const detail = 'available_at must be at most 30 days ahead.';
  const error: ProblemError = {
    detail,
    pointer: single ? '/available_at' : `/${latest}/available_at`,
  };
  return new Problem('invalid_event', detail, { errors: [error] });
}

function refusalProblem(
  status: Exclude<PublishAnswer['status'], 'published'>,
  topic: PublishTopic,
): Problem {
  const nothing = 'Nothing of the request was stored.';
  switch (status) {
    case 'topic_not_found':
      return new Problem('topic_not_found', `There is no topic ${topic.name}.`);
    case 'buffer_full':
      return new Problem('publish_buffer_full', nothing);
    case 'in_progress':
      return new Problem(
        'idempotency_in_progress',
        `${nothing} Another publish with the same key has not ended yet.`,
      );
    case 'unavailable':
      return new Problem('database_unavailable', nothing);
    case 'closed':
      return new Problem('shutting_down', nothing);
    case 'busy':
      return new Problem('database_busy', nothing);
    case 'outcome_unknown':
      return new Problem(
        'outcome_unknown',
        'The events may have been stored or not. With an Idempotency-Key, or with ids of their own, it is safe to send them again.',
      );
  }
}
