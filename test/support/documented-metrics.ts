import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** A row of deploy/metrics.md. */
export interface DocumentedMetric {
  readonly name: string;
  readonly type: string;
  readonly labels: readonly string[];
}

/** What deploy/metrics.md says that there is. */
export function documentedMetrics(): DocumentedMetric[] {
  const text = readFileSync(join(import.meta.dirname, '../../deploy/metrics.md'), 'utf8');
  const row = /^\| `(broker_\w+)` +\| (\w+) +\| ([\w, ]*?) *\|/gm;
  return [...text.matchAll(row)].map(([, name = '', type = '', labels = '']) => ({
    name,
    type,
    labels: labels === '' ? [] : labels.split(', '),
  }));
}
