import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const dir = join(import.meta.dirname, '../../deploy/grafana/dashboards');

export interface DataSource {
  readonly type: string;
  readonly uid: string;
}

export interface Target {
  readonly refId: string;
  readonly expr: string;
  readonly exemplar?: boolean;
  /** What is so now; else over the time shown. */
  readonly instant?: boolean;
}

export interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly description?: string;
  readonly gridPos: {
    readonly h: number;
    readonly w: number;
    readonly x: number;
    readonly y: number;
  };
  readonly datasource?: DataSource;
  readonly targets?: readonly Target[];
  readonly fieldConfig?: { readonly defaults: { readonly unit?: string } };
}

export interface Variable {
  readonly name: string;
  readonly datasource: DataSource;
  readonly query: { readonly query: string };
}

export interface Annotation {
  readonly name: string;
  readonly datasource: DataSource;
  readonly target: Target;
}

/** A dashboard as Grafana provisions it: the members that the tests look at. */
export interface Dashboard {
  /** The file, without its ending. */
  readonly file: string;
  readonly text: string;
  readonly uid: string;
  readonly title: string;
  readonly description: string;
  readonly schemaVersion: number;
  readonly editable: boolean;
  readonly refresh: string;
  readonly time: { readonly from: string; readonly to: string };
  readonly tags: readonly string[];
  readonly annotations: { readonly list: readonly Annotation[] };
  readonly templating: { readonly list: readonly Variable[] };
  readonly panels: readonly Panel[];
}

export function readDashboards(): Dashboard[] {
  return readdirSync(dir).map((name) => {
    const text = readFileSync(join(dir, name), 'utf8');
    return { ...(JSON.parse(text) as Dashboard), file: basename(name, '.json'), text };
  });
}

/** A panel, and where it is, in words. */
export interface PlacedPanel {
  readonly dashboard: Dashboard;
  readonly panel: Panel;
  readonly at: string;
}

export interface PlacedTarget extends PlacedPanel {
  readonly target: Target;
  /** The query, without variables. */
  readonly expr: string;
}

export function panelsOf(dashboards: readonly Dashboard[]): PlacedPanel[] {
  return dashboards.flatMap((dashboard) =>
    dashboard.panels.map((panel) => ({ dashboard, panel, at: `${dashboard.uid}: ${panel.title}` })),
  );
}

/** Every query of every panel. */
export function targetsOf(dashboards: readonly Dashboard[]): PlacedTarget[] {
  return panelsOf(dashboards).flatMap((placed) =>
    (placed.panel.targets ?? []).map((target) => ({
      ...placed,
      at: `${placed.at}, ${target.refId}`,
      target,
      expr: withVariables(target.expr, { variables: placed.dashboard.templating.list }),
    })),
  );
}

/** As Grafana does it where all values of the variables are chosen, and an hour is shown of what is scraped each 15 s. */
export function withVariables(
  expr: string,
  { variables }: { variables: readonly Variable[] },
): string {
  const values: Record<string, string> = { __rate_interval: '1m', __range: '1h' };
  for (const { name } of variables) values[name] = '.*';
  return expr.replaceAll(/\$(\w+)/g, (text, name: string) => values[name] ?? text);
}

const words = new Set(
  'and or unless on ignoring group_left group_right by without offset bool inf nan'.split(' '),
);

/** The names of the series that a query asks for. */
export function metricNamesOf(expr: string): string[] {
  const bare = expr
    .replaceAll(/"(?:[^"\\]|\\.)*"/g, '""')
    .replaceAll(/\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)/g, ' ')
    .replaceAll(/\{[^}]*\}|\[[^\]]*\]/g, ' ')
    .replaceAll(/\boffset\s+\w+/g, ' ');
  const names = [...bare.matchAll(/(?<![\w:.$])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])/g)]
    .map(([name]) => name)
    .filter((name) => !words.has(name.toLowerCase()));
  const byName = [...expr.matchAll(/__name__=~?"([^"]*)"/g)].flatMap(([, names = '']) =>
    names.split('|'),
  );
  return [...new Set([...names, ...byName])];
}

/** Of `label_values(series, label)`. */
export function labelValuesOf(query: string): { selector: string; label: string } {
  const [, selector = '', label = ''] = /^label_values\((.*), (\w+)\)$/.exec(query) ?? [];
  if (label === '') throw new Error(`no label_values: ${query}`);
  return { selector, label };
}

/** Series of exporters that the stack has and that do not run in the tests, and what is missing there for others; by the reason. */
const elsewhere: Readonly<Record<string, readonly string[]>> = {
  'of nginx-prometheus-exporter': [
    'nginx_http_requests_total',
    'nginx_connections_active',
    'nginx_connections_waiting',
  ],
  'of node_exporter, or made of what it has': [
    'node_filesystem_avail_bytes',
    'node_filesystem_size_bytes',
    'node_network_receive_bytes_total',
    'node_network_transmit_bytes_total',
    'host:cpu_utilisation:ratio',
    'host:memory_utilisation:ratio',
  ],
  'of postgres_exporter': [
    'pg_up',
    'pg_stat_database_xact_commit',
    'pg_stat_database_xact_rollback',
    'pg_stat_database_blks_hit',
    'pg_stat_database_blks_read',
    'pg_stat_database_deadlocks',
  ],
  'of blackbox_exporter': [
    'probe_success',
    'probe_duration_seconds',
    'probe_ssl_earliest_cert_expiry',
  ],
  'the PostgreSQL of the tests has no replica': [
    'broker_database_replication_lag_seconds',
    'broker_database_replication_lag_bytes',
  ],
};

export const seriesFromElsewhere: readonly string[] = Object.values(elsewhere).flat();

/** Whether a query asks for what does not come in the tests. */
export function isFromElsewhere(expr: string): boolean {
  return metricNamesOf(expr).some((name) => seriesFromElsewhere.includes(name));
}
