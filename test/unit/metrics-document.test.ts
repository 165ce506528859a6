import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { createMetrics } from '#runtime/metrics.ts';
import { documentedMetrics } from '#test/support/documented-metrics.ts';

const declared = createMetrics({ service: 'api' })
  .registry.getMetricsAsArray()
  .map((metric) => ({ name: metric.name, type: String(metric.type) }));

test('deploy/metrics.md has each metric once, with its type', () => {
  const ours = declared.filter(({ name }) => name.startsWith('broker_'));
  const documented = documentedMetrics().map(({ name, type }) => ({ name, type }));
  const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);
  expect(documented.toSorted(byName)).toEqual(ours.toSorted(byName));
});

test('whatever else it names is a metric too, of ours, of Node or of an exporter', () => {
  const text = readFileSync(join(import.meta.dirname, '../../deploy/metrics.md'), 'utf8');
  const named = text.match(/\b(broker|process|nodejs)_[a-z0-9_]+\b/g) ?? [];
  const known = new Set(declared.map(({ name }) => name));
  const unknown = named.filter(
    (name) => !known.has(name) && !known.has(name.replace(/_(bucket|sum|count)$/, '')),
  );
  expect(unknown).toEqual([]);
});
