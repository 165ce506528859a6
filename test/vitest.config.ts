import { join } from 'node:path';

import { defineConfig } from 'vitest/config';

const top = join(import.meta.dirname, '..');
const resultsDir = process.env['TEST_RESULTS_DIR'];

/** A tier of tests on the shared PostgreSQL. The setup is named here and not at the top: there it runs for unit tests too. */
const onPostgres = { globalSetup: [join(import.meta.dirname, 'setup/postgres.ts')] };

export default defineConfig({
  root: top,
  test: {
    pool: 'forks',
    // All cores: tests wait for PostgreSQL more than they compute.
    maxWorkers: '100%',
    testTimeout: 30_000,
    hookTimeout: 60_000,
    teardownTimeout: 60_000,
    // a limit of liveness, on a machine that may be busy
    expect: { poll: { timeout: 10_000 } },
    reporters: ['default', ...(resultsDir ? ['json'] : [])],
    ...(resultsDir ? { outputFile: { json: join(resultsDir, `vitest-${process.pid}.json`) } } : {}),
    projects: [
      { extends: true, test: { name: 'unit', include: ['test/unit/**/*.test.ts'] } },
      { extends: true, test: { name: 'tidy', include: ['test/tidy.test.ts'] } },
      { extends: true, test: { name: 'db', include: ['test/db/**/*.test.ts'], ...onPostgres } },
      { extends: true, test: { name: 'api', include: ['test/api/**/*.test.ts'], ...onPostgres } },
      {
        extends: true,
        test: {
          name: 'system',
          include: ['test/system/**/*.test.ts'],
          ...onPostgres,
          testTimeout: 120_000,
          // Each starts processes of its own, enough for both cores; they run after the others, one by one.
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          name: 'deploy',
          include: ['test/deploy/**/*.test.ts'],
          exclude: [
            'test/deploy/{nginx*,postgres*}.test.ts',
            'test/deploy/{workflows,release,deploy-by-ssh}.test.ts',
          ],
          globalSetup: [join(import.meta.dirname, 'setup/docker.ts')],
          testTimeout: 120_000,
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          // the real nginx and the stack's PostgreSQL without Docker, with real processes
          name: 'nginx',
          include: ['test/deploy/{nginx*,postgres*}.test.ts', 'test/swarm/load.test.ts'],
          ...onPostgres,
          testTimeout: 120_000,
          hookTimeout: 120_000,
          // they use fixed addresses of the loopback range
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          // the running product with the real Prometheus, Alertmanager and a browser
          name: 'observability',
          include: ['test/observability/**/*.test.ts'],
          globalSetup: [
            ...onPostgres.globalSetup,
            join(import.meta.dirname, 'setup/prometheus.ts'),
          ],
          testTimeout: 120_000,
          hookTimeout: 300_000,
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          // how a release is made, with the real programs where Debian has them
          name: 'release',
          include: ['test/deploy/{workflows,release,deploy-by-ssh}.test.ts'],
          testTimeout: 60_000,
          // it imports JSON in a way that Node refuses
          server: { deps: { inline: [/@actions\//] } },
        },
      },
      {
        extends: true,
        test: {
          // Docker hosts of our own, joined to a Swarm
          name: 'swarm',
          include: ['test/swarm/**/*.test.ts'],
          exclude: ['test/swarm/load.test.ts'],
          globalSetup: [join(import.meta.dirname, 'setup/docker.ts')],
          testTimeout: 300_000,
          hookTimeout: 300_000,
          // each has three hosts
          fileParallelism: false,
        },
      },
    ],
  },
});
