import { ConfigError } from './config.ts';
import { secretsOf } from './config-secrets.ts';
import { tracesUrl } from './config-observability.ts';
import { Lifecycle } from './lifecycle.ts';
import { createLogger, type Logger, secretHider } from './logger.ts';
import { RepeatLimit } from './repeat-limit.ts';
import type { SpanDropReason } from './span-queue.ts';
import type { TelemetryConfig } from './telemetry.ts';

/** What the configuration of every process has. */
export type ProcessConfig = {
  readonly instance: string;
  readonly logLevel: string;
  readonly shutdownTimeoutMs: number;
} & Partial<TelemetryConfig>;

export type ProcessKit = {
  readonly logger: Logger;
  readonly lifecycle: Lifecycle;
  /** Who counts the lines that the log does without is told of all of them. */
  readonly onLogLinesSuppressed?: (listener: (count: number) => void) => void;
  /** Absent where no traces are sent. Who counts what is dropped of them is told of all of it. */
  readonly onSpansDropped?: (listener: (reason: SpanDropReason, count: number) => void) => void;
};

export type ProcessOptions<Config extends ProcessConfig> = {
  readonly service: string;
  readonly loadConfig: (env: NodeJS.ProcessEnv) => Config;
  /**
   * Starts the process's services and registers their shutdown with `lifecycle`. What it throws
   * ends the process with code 1 after the steps registered so far. It imports what speaks to the database and over HTTP
   * itself: traces can only be made of what is loaded after their SDK.
   */
  readonly start: (config: Config, kit: ProcessKit) => Promise<void>;
};

/**
 * All of a `main.ts`: configuration from `env`, logger, lifecycle, start; resolves at the end of
 * the shutdown. A wrong configuration is printed to standard error, every fault with the name of
 * its variable, and ends the process with code 1.
 */
export async function runProcess<Config extends ProcessConfig>(
  env: NodeJS.ProcessEnv,
  options: ProcessOptions<Config>,
): Promise<void> {
  const config = readConfig(env, options.loadConfig);
  if (config === undefined) return;
  const { instance, logLevel: level, shutdownTimeoutMs } = config;
  const { service } = options;
  const secrets = secretsOf(env, config);
  const repeats = new RepeatLimit();
  const logger = createLogger({ service, instance, level, repeats, secrets });
  process.once('exit', () => repeats.flush());
  const lifecycle = new Lifecycle({ logger, shutdownTimeoutMs });
  let reason: string | undefined;
  try {
    const traced = await startTraces(env, config, { service, logger, lifecycle });
    const kit: ProcessKit = {
      logger,
      lifecycle,
      onLogLinesSuppressed: (listener) => repeats.onSuppressed(listener),
      ...traced,
    };
    // Told to stop while it starts, the process ends even if the start never does.
    await Promise.race([options.start(config, kit), lifecycle.finished]);
  } catch (error) {
    // A start that was told to stop may end with an error, which then says nothing new.
    if (!lifecycle.isStopping) {
      reason = error instanceof Error ? error.message : String(error);
      lifecycle.fail(error, 'cannot start');
    }
  }
  await lifecycle.finished;
  // the log has the whole error; this line is for who typed the command
  if (reason !== undefined) {
    process.stderr.write(`\n${service} cannot start: ${secretHider(secrets)(reason)}\n`);
  }
}

/** Only where they are wanted: the SDK alone takes longer to load than all the rest. */
async function startTraces(
  env: NodeJS.ProcessEnv,
  config: ProcessConfig,
  { service, logger, lifecycle }: { service: string; logger: Logger; lifecycle: Lifecycle },
): Promise<Pick<ProcessKit, 'onSpansDropped'>> {
  const url = tracesUrl(config);
  if (url === undefined) return {};
  const dropped = new Map<SpanDropReason, number>();
  let listener: ((reason: SpanDropReason, count: number) => void) | undefined;
  const { startTelemetry } = await import('./telemetry.ts');
  const telemetry = startTelemetry(url, {
    config: config as TelemetryConfig,
    service,
    env,
    logger,
    onDropped: (reason, count) => {
      if (listener === undefined) dropped.set(reason, (dropped.get(reason) ?? 0) + count);
      else listener(reason, count);
    },
  });
  lifecycle.onShutdown('telemetry', 'traces', async (deadline) => telemetry.stop(deadline));
  return {
    onSpansDropped: (added) => {
      listener = added;
      for (const [reason, count] of dropped) added(reason, count);
      dropped.clear();
    },
  };
}

function readConfig<Config>(
  env: NodeJS.ProcessEnv,
  loadConfig: (env: NodeJS.ProcessEnv) => Config,
): Config | undefined {
  try {
    return loadConfig(env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${secretHider(secretsOf(env))(error.message)}\n`);
    process.exitCode = 1;
    return undefined;
  }
}
