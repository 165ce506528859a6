export interface BannerFacts {
  /** Where the API is. */
  readonly url: string;
  /** Undefined where no key is known here. */
  readonly apiKey: string | undefined;
  /** Where the key is kept, if it is in a file. */
  readonly apiKeyFile: string | undefined;
  readonly databaseUrl: string;
  /** Undefined where the database is not ours. */
  readonly dataDir: string | undefined;
  /** What push may reach beside the internet. */
  readonly privateTargets: readonly string[];
}

/** What somebody needs to know who has just started the broker, with lines that work when pasted into a shell. */
export function renderBanner(facts: BannerFacts): string {
  const { url, apiKey, apiKeyFile, databaseUrl, dataDir, privateTargets } = facts;
  const key =
    apiKey === undefined
      ? 'none was given: set ADMIN_API_KEY, or use one that this database knows'
      : `${apiKey}${apiKeyFile === undefined ? '' : `  (kept in ${apiKeyFile})`}`;
  const psql =
    dataDir === undefined
      ? `psql ${quote(withoutPassword(databaseUrl))}`
      : `psql ${quote(databaseUrl)}`;
  return `
Event Broker runs at ${url}

  data     ${dataDir ?? 'in the database of DATABASE_URL'}
  API key  ${key}
  psql     ${psql}
  API      ${url}/api/openapi.json
  push     to the internet${privateTargets.length === 0 ? '' : `, and to ${privateTargets.join(', ')}`} (ALLOW_PRIVATE_TARGETS)

Paste these into another terminal; Ctrl-C here stops everything.

${renderTour(url, apiKey ?? 'the-api-key')}
`;
}

/** One event, from its topic to its ack. */
function renderTour(url: string, apiKey: string): string {
  const api = `${url}/api/v1`;
  const curl = `curl -sS -w '\\n' -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json'`;
  return `KEY=${quote(apiKey)}
${curl} -X PUT ${api}/topics/orders -d '{}'
${curl} -X PUT ${api}/subscriptions/billing -d '{"topic":"orders","type":"pull"}'
${curl} ${api}/topics/orders/events -d '{"type":"order.created","source":"/shop","data":{"total":12}}'
RECEIVED=$(${curl} ${api}/subscriptions/billing/receive -d '{"max_messages":1,"wait_seconds":5}'); printf '%s\\n' "$RECEIVED"
LEASE=$(printf '%s' "$RECEIVED" | grep -o '"lease_id":"[^"]*"' | cut -d '"' -f 4)
${curl} ${api}/subscriptions/billing/ack -d '{"lease_ids":["'"$LEASE"'"]}'`;
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function withoutPassword(databaseUrl: string): string {
  const url = new URL(databaseUrl);
  url.password = '';
  return url.href;
}
