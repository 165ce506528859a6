import pg from 'pg';

export interface AwaitDatabaseOptions {
  readonly databaseUrl: string;
  /** How long it may take until the role can connect, in milliseconds. */
  readonly timeoutMs: number;
  /** Told once for each reason, in words. */
  readonly onWaiting: (reason: string) => void;
  /** Ends the waiting; what it was waiting for is thrown. */
  readonly signal?: AbortSignal;
  /** Between two tries, in milliseconds (500). */
  readonly intervalMs?: number;
}

// A name that has no address yet, a server that does not listen yet, or not to this role: what a database shows that is
// being set up beside this process. SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
const passing = new Set([
  'ENOTFOUND',
  'EAI_AGAIN',
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ETIMEDOUT',
  // starting up; too many connections
  '57P03',
  '53300',
  // the role or its password, the rule that lets it in, and the database are made after the server has started
  '28P01',
  '28000',
  '3D000',
]);

/**
 * Resolves as soon as the role of `databaseUrl` can connect. Throws what the last try met when `timeoutMs` is over, and at
 * once what no waiting mends, such as a certificate that is not trusted.
 */
export async function awaitDatabase(options: AwaitDatabaseOptions): Promise<void> {
  const { databaseUrl, timeoutMs, onWaiting, signal, intervalMs = 500 } = options;
  const deadline = performance.now() + timeoutMs;
  let told: string | undefined;
  for (;;) {
    const error = await connectOnce(databaseUrl, intervalMs * 10);
    if (error === undefined) return;
    const isOver = performance.now() > deadline || signal?.aborted === true;
    if (isOver || !isPassing(error)) throw error;
    if (told !== error.message) onWaiting(error.message);
    told = error.message;
    await new Promise((resolve) => setTimeout(resolve, intervalMs));
  }
}

async function connectOnce(
  connectionString: string,
  connectionTimeoutMillis: number,
): Promise<Error | undefined> {
  const client = new pg.Client({ connectionString, connectionTimeoutMillis });
  client.on('error', () => undefined);
  try {
    await client.connect();
    return undefined;
  } catch (error) {
    return error as Error;
  } finally {
    await client.end().catch(() => undefined);
  }
}

function isPassing(error: Error): boolean {
  // One name with several addresses: each was tried.
  if (error instanceof AggregateError) return error.errors.some((each) => isPassing(each as Error));
  const { code } = error as { code?: string };
  return passing.has(code ?? '') || error.message === 'timeout expired';
}
