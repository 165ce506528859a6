/** How one problem is answered. `retryAfterSeconds`: what Retry-After says when the place that refuses knows no better. */
interface ProblemKind {
  readonly status: number;
  readonly title: string;
  readonly retryAfterSeconds?: number;
}

/**
 * Every problem that the API can answer with: a closed table, part of the contract. A code never changes its meaning;
 * titles are for people.
 */
export const problemKinds = {
  bad_request: { status: 400, title: 'The request is not valid HTTP' },
  unauthorized: { status: 401, title: 'A valid API key is needed' },
  forbidden: { status: 403, title: 'The API key does not open this' },
  not_found: { status: 404, title: 'There is no such path' },
  topic_not_found: { status: 404, title: 'There is no such topic' },
  subscription_not_found: { status: 404, title: 'There is no such subscription' },
  event_not_found: { status: 404, title: 'There is no such event' },
  dead_letter_not_found: { status: 404, title: 'There is no such dead letter' },
  job_not_found: { status: 404, title: 'There is no such job' },
  api_key_not_found: { status: 404, title: 'There is no such API key' },
  method_not_allowed: { status: 405, title: 'The path does not know this method' },
  request_timeout: { status: 408, title: 'The request did not arrive in time' },
  idempotency_in_progress: {
    status: 409,
    title: 'A publish with the same key is under way',
    retryAfterSeconds: 1,
  },
  lease_lost: { status: 409, title: 'None of the leases is held any more' },
  topic_has_subscriptions: { status: 409, title: 'The topic still has subscriptions' },
  subscription_immutable: { status: 409, title: 'This of a subscription cannot be changed' },
  subscription_is_push: {
    status: 409,
    title: 'The subscription is pushed: nobody receives or settles its events',
  },
  job_unfinished: { status: 409, title: 'Such a job is under way already' },
  body_too_large: { status: 413, title: 'The body is too large' },
  unsupported_media_type: { status: 415, title: 'The content type is not supported' },
  invalid_json: { status: 422, title: 'The body is not valid JSON' },
  invalid_request: { status: 422, title: 'The request is not valid' },
  invalid_event: { status: 422, title: 'The event is not valid' },
  event_too_large: { status: 422, title: 'The event is too large' },
  too_many_events: { status: 422, title: 'Too many events in one request' },
  idempotency_conflict: { status: 422, title: 'The idempotency key was used with another body' },
  invalid_lease_id: { status: 422, title: 'The lease id is not valid' },
  invalid_cursor: { status: 422, title: 'The cursor is not valid' },
  not_supported: { status: 422, title: 'This is not supported yet' },
  endpoint_not_allowed: { status: 422, title: 'The endpoint may not be pushed to' },
  rate_limited: { status: 429, title: 'Too many requests', retryAfterSeconds: 1 },
  headers_too_large: { status: 431, title: 'The request headers are too large' },
  internal_error: { status: 500, title: 'The broker failed' },
  publish_buffer_full: {
    status: 503,
    title: 'This replica holds all the events that it may',
    retryAfterSeconds: 1,
  },
  backlog_full: {
    status: 503,
    title: "The topic's backlog is full",
    retryAfterSeconds: 5,
  },
  outcome_unknown: {
    status: 503,
    title: 'The outcome is unknown: the connection to the database broke',
    retryAfterSeconds: 1,
  },
  receive_waiting_full: {
    status: 503,
    title: 'This replica has all the waiting receive requests that it may',
    retryAfterSeconds: 1,
  },
  database_unavailable: {
    status: 503,
    title: 'The database cannot be reached',
    retryAfterSeconds: 2,
  },
  database_busy: {
    status: 503,
    title: 'The database did not answer in time',
    retryAfterSeconds: 1,
  },
  handler_timeout: {
    status: 503,
    title: 'The request took too long',
    retryAfterSeconds: 1,
  },
  starting: {
    status: 503,
    title: 'The broker is starting',
    retryAfterSeconds: 2,
  },
  shutting_down: {
    status: 503,
    title: 'This replica is shutting down',
    retryAfterSeconds: 1,
  },
} as const satisfies Record<string, ProblemKind>;

export type ProblemCode = keyof typeof problemKinds;

export const problemCodes = Object.keys(problemKinds) as ProblemCode[];

/** What a code is answered with. */
export function problemKind(code: ProblemCode): ProblemKind {
  return problemKinds[code];
}
