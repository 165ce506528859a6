import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { seedAdminKey, type SeedOptions, type SeedResult } from '#db/api-keys.ts';
import type { Database } from '#db/client.ts';
import type { Directory, DirectoryApiKey } from './directory.ts';
import { FailureLimit } from './failure-limit.ts';
import { Problem } from './problems.ts';
import type { Scope } from './schemas/api-key.ts';

/** A new random key, and what is kept of it. */
export function generateApiKey(): { key: string; hash: Buffer; prefix: string } {
  return identify(`ebk_${randomBytes(32).toString('base64url')}`);
}

function identify(key: string): { key: string; hash: Buffer; prefix: string } {
  // of a key that somebody thought up, less is shown
  const shown = key.startsWith('ebk_') ? 10 : 4;
  return { key, hash: hashKey(key), prefix: key.slice(0, shown) };
}

function hashKey(key: string): Buffer {
  return createHash('sha256').update(key).digest();
}

/** Makes the configured key open everything, unless another has taken its place; see `seedAdminKey`. */
export async function seedConfiguredKey(
  db: Database,
  key: string,
  options: SeedOptions = {},
): Promise<SeedResult> {
  return seedAdminKey(db, identify(key), options);
}

/** Whether a key may do what a scope names; admin may all. */
export function hasScope(key: DirectoryApiKey, scope: Scope): boolean {
  return key.scopes.includes('admin') || key.scopes.includes(scope);
}

/** Whether a key opens a topic. */
export function opensTopic(key: DirectoryApiKey, topic: string): boolean {
  return key.topics === null || key.topics.some((pattern) => matchesPattern(pattern, topic));
}

/** Whether a text fits a pattern in which '*' stands for any characters, none too. Linear: no pattern makes it slow. */
export function matchesPattern(pattern: string, text: string): boolean {
  const parts = pattern.split('*');
  const first = parts.shift() ?? '';
  const last = parts.pop();
  if (last === undefined) return text === first;
  if (!text.startsWith(first) || text.length < first.length + last.length) return false;
  let at = first.length;
  for (const part of parts) {
    const found = text.indexOf(part, at);
    if (found === -1) return false;
    at = found + part.length;
  }
  return at <= text.length - last.length && text.endsWith(last);
}

/** Refuses a topic that the request's key does not open. For routes that learn the topic only from the body or the database. */
export function requireTopic(request: FastifyRequest, topic: string): void {
  const key = request.apiKey;
  if (key === undefined || !opensTopic(key, topic)) throw closedTopic(topic);
}

/** Refuses a key that is narrowed to some topics: for what concerns all of them. */
export function requireAllTopics(request: FastifyRequest): void {
  if (request.apiKey?.topics !== null) {
    throw new Problem('forbidden', 'An API key that is narrowed to topics may not do this.');
  }
}

/** The patterns that a list is narrowed to by the request's key. */
export function topicPatterns(request: FastifyRequest): readonly string[] | undefined {
  return request.apiKey?.topics ?? undefined;
}

function closedTopic(topic: string): Problem {
  return new Problem('forbidden', `The API key does not open the topic ${topic}.`);
}

export interface AuthOptions {
  readonly directory: Pick<Directory, 'apiKey' | 'wasApiKey' | 'subscription'>;
  /** Wrong keys that one address may show in a window (50 in 10 s). */
  readonly failuresMax?: number;
  readonly failureWindowMs?: number;
}

/**
 * Checks who asks and whether the route is open to them: the key, its scope, and its patterns against the topic that the
 * path names or that the subscription in the path belongs to.
 */
export function createAuthHook(options: AuthOptions) {
  const { directory, failuresMax = 50, failureWindowMs = 10_000 } = options;
  const failures = new FailureLimit({ max: failuresMax, windowMs: failureWindowMs });

  async function authenticate(request: FastifyRequest): Promise<DirectoryApiKey> {
    const { authorization } = request.headers;
    const isBasic = request.routeOptions.config.acceptsBasic === true;
    const text = (isBasic ? basicKey(authorization) : undefined) ?? bearerKey(authorization);
    const hash = hashKey(text);
    // Somebody else behind the same proxy must not shut out who has a good key.
    const waitMs = directory.wasApiKey(hash) ? 0 : failures.waitMs(request.ip);
    if (waitMs > 0) {
      throw new Problem('rate_limited', 'Too many wrong API keys came from this address.', {
        retryAfterSeconds: waitMs / 1000,
      });
    }
    const key = await directory.apiKey(hash);
    if (key !== undefined && timingSafeEqual(key.hash, hash)) return key;
    failures.note(request.ip);
    throw unauthorized('The API key is not valid.', 'error="invalid_token"');
  }

  return async (request: FastifyRequest, _reply: FastifyReply): Promise<void> => {
    const { scope, topicParam, subscriptionParam } = request.routeOptions.config;
    if (scope === 'none' || request.is404) return;
    const key = await authenticate(request);
    request.apiKey = key;
    if (scope === undefined || !hasScope(key, scope)) {
      throw new Problem('forbidden', `The API key lacks the scope ${scope ?? ''}.`);
    }
    if (key.topics === null) return;
    const params = request.params as Readonly<Record<string, string>>;
    const topic = topicParam === undefined ? undefined : params[topicParam];
    if (topic !== undefined) requireTopic(request, topic);
    const name = subscriptionParam === undefined ? undefined : params[subscriptionParam];
    if (name === undefined) return;
    const subscription = await directory.subscription(name);
    if (subscription !== undefined) requireTopic(request, subscription.topic);
  };
}

function bearerKey(header: string | undefined): string {
  if (header === undefined) throw unauthorized('Send Authorization: Bearer <API key>.');
  const key = /^Bearer +([\x21-\x7e]{1,256})$/i.exec(header)?.[1];
  if (key === undefined) {
    throw unauthorized('Send Authorization: Bearer <API key>.', 'error="invalid_request"');
  }
  return key;
}

/** The password of RFC 7617, whatever the name before it; undefined where there is none that could be a key. */
function basicKey(header: string | undefined): string | undefined {
  const encoded = /^Basic +([A-Za-z0-9+/]{1,1024}={0,2})$/i.exec(header ?? '')?.[1];
  if (encoded === undefined) return undefined;
  const pair = Buffer.from(encoded, 'base64').toString();
  return /^[^:]*:([\x21-\x7e]{1,256})$/.exec(pair)?.[1];
}

function unauthorized(detail: string, parameter?: string): Problem {
  const challenge = ['Bearer realm="event-broker"', parameter].filter((part) => part !== undefined);
  return new Problem('unauthorized', detail, {
    headers: { 'www-authenticate': challenge.join(', ') },
  });
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a key must be allowed for this route; 'none' opens it to everybody. Every route says so. */
    scope?: Scope | 'none';
    /** The key may also come as the password of Basic authentication, as browsers send it: only where nothing is changed. */
    acceptsBasic?: boolean;
    /** The path parameter that is a topic's name: keys may be narrowed to topics. */
    topicParam?: string;
    /** The path parameter that is a subscription's name: its topic is looked at. */
    subscriptionParam?: string;
  }
  interface FastifyRequest {
    /** Who asks; undefined where the route is open to everybody. */
    apiKey: DirectoryApiKey | undefined;
  }
}
