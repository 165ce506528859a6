import { ConfigError } from './config.ts';
import { Lifecycle } from './lifecycle.ts';
import { createLogger, hideSecretsInText, type Logger } from './logger.ts';

/** What the configuration of every process has. */
export type ProcessConfig = {
  readonly instance: string;
  readonly logLevel: string;
  readonly shutdownTimeoutMs: number;
};

export type ProcessKit = { readonly logger: Logger; readonly lifecycle: Lifecycle };

export type ProcessOptions<Config extends ProcessConfig> = {
  readonly service: string;
  readonly loadConfig: (env: NodeJS.ProcessEnv) => Config;
  /**
   * Starts the process's services and registers their shutdown with `lifecycle`. What it throws
   * ends the process with code 1 after the steps registered so far.
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
  const logger = createLogger({ service: options.service, instance, level });
  const lifecycle = new Lifecycle({ logger, shutdownTimeoutMs });
  let reason: string | undefined;
  try {
    // Told to stop while it starts, the process ends even if the start never does.
    await Promise.race([options.start(config, { logger, lifecycle }), lifecycle.finished]);
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
    process.stderr.write(`\n${options.service} cannot start: ${hideSecretsInText(reason)}\n`);
  }
}

function readConfig<Config>(
  env: NodeJS.ProcessEnv,
  loadConfig: (env: NodeJS.ProcessEnv) => Config,
): Config | undefined {
  try {
    return loadConfig(env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${hideSecretsInText(error.message)}\n`);
    process.exitCode = 1;
    return undefined;
  }
}
