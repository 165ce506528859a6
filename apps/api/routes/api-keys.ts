import { type TypeBoxTypeProvider, TypeBoxValidatorCompiler } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import {
  type ApiKeyRow,
  createApiKey,
  deleteApiKey,
  listApiKeys,
  seededKeyName,
} from '#db/api-keys.ts';
import { generateApiKey, requireAllTopics } from '../auth.ts';
import { controlBodyBytesMax } from '../control-body.ts';
import { decodeCursor, encodeCursor, pageOf } from '../cursor.ts';
import type { AppDependencies } from '../dependencies.ts';
import { MEMBER_BY_NAME } from '../publish/event-attributes.ts';
import { Problem } from '../problems.ts';
import {
  type ApiKey,
  ApiKeyPage,
  ApiKeyParams,
  CreateApiKey,
  CreatedApiKey,
} from '../schemas/api-key.ts';
import { PageQuery } from '../schemas/page.ts';

/** Makes, lists and removes API keys. Only for admins of all topics: a key can make no other that opens more than itself. */
export function apiKeyRoutes(app: FastifyInstance, deps: AppDependencies): void {
  addCreate(app, deps);
  addList(app, deps);
  addDelete(app, deps);
}

const url = '/api/v1/api-keys';
const tags = ['api-keys'];

function addCreate(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().post(
    url,
    {
      config: { scope: 'admin' },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Make an API key',
        description: 'The answer is the only one that ever shows the key.',
        body: CreateApiKey,
        response: { 201: CreatedApiKey },
      },
    },
    async (request, reply) => {
      requireAllTopics(request);
      const { name, scopes, topics = null, expires_at = null } = request.body;
      if (name === seededKeyName) {
        throw invalid(`${name} is the name of the key of the configuration.`, '/name');
      }
      const wrongTime = expires_at === null ? undefined : wrongInTime(expires_at);
      if (wrongTime !== undefined) throw invalid(`expires_at ${wrongTime}.`, '/expires_at');
      const { key, hash, prefix } = generateApiKey();
      const made = await createApiKey(db, { name, hash, prefix, scopes, topics, expires_at });
      if (made.status === 'expired') throw invalid('expires_at has passed.', '/expires_at');
      directory.forget('api_key', String(made.apiKey.id));
      return reply.code(201).send({ ...toWire(made.apiKey), key });
    },
  );
}

/** The same rule as for the times of events: what the database can keep. */
function wrongInTime(time: string): string | undefined {
  const member = MEMBER_BY_NAME.get('time');
  return member?.kind === 'text' ? member.check?.(time) : undefined;
}

function invalid(detail: string, pointer: string): Problem {
  return new Problem('invalid_request', detail, { errors: [{ detail, pointer }] });
}

function addList(app: FastifyInstance, { db }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().get(
    url,
    {
      config: { scope: 'admin', problems: ['invalid_cursor'] },
      validatorCompiler: TypeBoxValidatorCompiler,
      schema: {
        tags,
        summary: 'List API keys, oldest first',
        querystring: PageQuery,
        response: { 200: ApiKeyPage },
      },
    },
    async (request) => {
      requireAllTopics(request);
      const { limit = 50, cursor } = request.query;
      const last = decodeCursor('api_keys', cursor, (id) => /^[1-9]\d{0,8}$/.test(id));
      const after = last === undefined ? undefined : Number(last);
      return pageOf(await listApiKeys(db, { limit: limit + 1, after }), limit, {
        item: toWire,
        cursor: (row) => encodeCursor('api_keys', String(row.id)),
      });
    },
  );
}

function addDelete(app: FastifyInstance, { db, directory }: AppDependencies): void {
  app.withTypeProvider<TypeBoxTypeProvider>().delete(
    `${url}/:id`,
    {
      config: { scope: 'admin', problems: ['api_key_not_found'] },
      bodyLimit: controlBodyBytesMax,
      schema: {
        tags,
        summary: 'Remove an API key',
        description:
          'It opens nothing any more, within a second on every replica. One that ADMIN_API_KEY seeded stays in the list as expired, so that no replica seeds it again.',
        params: ApiKeyParams,
        response: { 204: Type.Null() },
      },
    },
    async (request, reply) => {
      requireAllTopics(request);
      const id = Number(request.params.id);
      const removed = id <= 0x7fff_ffff ? await deleteApiKey(db, id) : { status: 'not_found' };
      directory.forget('api_key', request.params.id);
      if (removed.status === 'not_found') {
        throw new Problem('api_key_not_found', `There is no API key ${request.params.id}.`);
      }
      return reply.code(204).send(null);
    },
  );
}

function toWire(row: ApiKeyRow): ApiKey {
  return { ...row, id: String(row.id) };
}
