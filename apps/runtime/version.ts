import packageJson from '../../package.json' with { type: 'json' };

/** Version of the broker: in every log line, in metrics and in /api/status. */
export const version: string = packageJson.version;
