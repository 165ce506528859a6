import type { TestProject } from 'vitest/node';

import { type PrometheusPrograms, unpackPrometheus } from '#test/support/prometheus-programs.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** Read it with `inject('prometheus')`; the newest is the last. */
    prometheus: readonly PrometheusPrograms[];
  }
}

/** vitest global setup: Prometheus 2 and 3 with their tools, for all files of the run. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const unpacked = await unpackPrometheus();
  const { releases } = unpacked;
  project.provide('prometheus', releases);
  const versions = releases.map(({ version }) => version).join(' and ');
  process.stdout.write(`Prometheus of the tests: ${versions}, of Debian\n`);
  return async () => unpacked.remove();
}
