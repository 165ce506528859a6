import { createDatabase, type Database } from '#db/client.ts';
import {
  type KeptPushSecret,
  listPushSecretsNotSealedBy,
  pushSecretContext,
  replacePushSecrets,
} from '#db/push-secrets.ts';
import type { MigrateConfig } from '#runtime/config.ts';
import type { Logger } from '#runtime/logger.ts';
import type { ProcessKit } from '#runtime/process.ts';
import { createSealer, type Sealer, SealError } from '#runtime/sealer.ts';

export interface ResealOptions {
  /** SECRET_ENCRYPTION_KEY: the first seals, all open. */
  readonly keys: string;
  readonly logger: Pick<Logger, 'info' | 'error'>;
  /** Ends it between two chunks. */
  readonly signal?: AbortSignal;
  /** Secrets that are read, and changed in one transaction, at a time (100). */
  readonly chunk?: number;
}

/** Does it in the database of `migrate`, where `migrate` has SECRET_ENCRYPTION_KEY. */
export async function resealConfigured(config: MigrateConfig, kit: ProcessKit): Promise<void> {
  if (config.secretEncryptionKey === undefined) return;
  await using database = createDatabase({
    url: config.databaseDirectUrl ?? config.databaseUrl,
    applicationName: `broker-migrate-${config.instance}`,
    poolMax: 1,
    statementTimeoutMs: config.statementTimeoutMs,
  });
  await resealPushSecrets(database.db, {
    keys: config.secretEncryptionKey,
    logger: kit.logger,
    signal: kit.lifecycle.signal,
  });
}

interface Pass {
  readonly resealed: number;
  readonly unopened: readonly { readonly subscription: string; readonly reason: string }[];
}

/** Each pass finds what was made during the one before it; who seals with another key all the time is never done. */
const passesMax = 10;
/** Subscriptions that are named where something is wrong with their secrets. */
const namedMax = 20;

/**
 * Seals with the first key every signing secret that is kept under another one, or plain; returns how many. Repeatable, and any number may do it at
 * once, while subscriptions are made and deleted. Rejects at the end, when all others are done, where a secret opens with none of the
 * keys: whoever gets these keys alone could not deliver that subscription's events.
 */
export async function resealPushSecrets(db: Database, options: ResealOptions): Promise<number> {
  const { keys, logger } = options;
  const sealer = createSealer(keys);
  let resealed = 0;
  for (let number = 1; ; number += 1) {
    const pass = await runPass(db, sealer, options);
    resealed += pass.resealed;
    if (pass.resealed > 0 && number < passesMax) continue;
    logger.info(
      { resealed, unopened: pass.unopened.length, key_id: sealer.keyId },
      `signing secrets sealed anew with the first key: ${resealed}`,
    );
    if (pass.unopened.length > 0) throw unopenedError(pass, logger);
    if (pass.resealed > 0) throw new Error(restless);
    return resealed;
  }
}

const restless =
  'signing secrets are sealed with another key all the time: first every API must have this SECRET_ENCRYPTION_KEY, then migrate';

async function runPass(db: Database, sealer: Sealer, options: ResealOptions): Promise<Pass> {
  const { signal, chunk = 100 } = options;
  const unopened: { subscription: string; reason: string }[] = [];
  let resealed = 0;
  for (let after = 0; ;) {
    signal?.throwIfAborted();
    const rows = await listPushSecretsNotSealedBy(db, sealer.keyId, { limit: chunk, after });
    const last = rows.at(-1);
    if (last === undefined) return { resealed, unopened };
    after = last.subscription_id;
    const replacements = [];
    for (const was of rows) {
      const becomes = resealOne(sealer, was);
      if (becomes instanceof Error) {
        unopened.push({ subscription: was.subscription, reason: becomes.message });
      } else replacements.push({ was, becomes });
    }
    resealed += await replacePushSecrets(db, replacements);
  }
}

function resealOne(sealer: Sealer, { subscription_id: id, key_id, sealed }: KeptPushSecret) {
  const context = pushSecretContext(id);
  try {
    const { keyId, sealed: anew } = sealer.seal(sealer.open(sealed, key_id, context), context);
    return { key_id: keyId, sealed: anew };
  } catch (error) {
    if (error instanceof SealError) return error;
    throw error;
  }
}

function unopenedError({ unopened }: Pass, logger: ResealOptions['logger']): Error {
  const named = unopened.slice(0, namedMax);
  for (const each of named) logger.error(each, 'its signing secret cannot be opened');
  const more = unopened.length > named.length ? ` and ${unopened.length - named.length} more` : '';
  const names = named.map(({ subscription }) => subscription).join(', ');
  return new Error(
    `${unopened.length} signing secrets open with none of the keys in SECRET_ENCRYPTION_KEY, those of ${names}${more}: ` +
      'add the key that they were sealed with, or delete these subscriptions and make them again',
  );
}
