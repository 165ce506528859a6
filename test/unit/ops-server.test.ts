import { once } from 'node:events';
import { connect } from 'node:net';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { createMetrics } from '#runtime/metrics.ts';
import {
  createOpsHandlers,
  type OpsOptions,
  type OpsServer,
  startOpsServer,
} from '#runtime/ops-server.ts';

let server: OpsServer | undefined;
afterEach(async () => {
  await server?.close();
  server = undefined;
});

async function start(options: Partial<OpsOptions> = {}): Promise<string> {
  const handlers = createOpsHandlers({
    service: 'reaper',
    checks: [],
    isDraining: () => false,
    metrics: createMetrics({ service: 'reaper' }),
    ...options,
  });
  server = await startOpsServer({ host: '127.0.0.1', port: 0, handlers });
  return `http://127.0.0.1:${server.port}/api`;
}

const never = (): Promise<void> => new Promise(() => {});

describe('liveness', () => {
  test('is 204 without a body, and asks no check', async () => {
    const check = vi.fn();
    const url = await start({ checks: [{ name: 'database', check }], isDraining: () => true });
    const response = await fetch(`${url}/health/live`);
    expect(response.status).toBe(204);
    expect(await response.text()).toBe('');
    expect(check).not.toHaveBeenCalled();
  });
});

describe('readiness', () => {
  test('is 200 when every check passes', async () => {
    const url = await start({ checks: [{ name: 'database', check: async () => {} }] });
    const response = await fetch(`${url}/health`);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toContain('application/json');
    expect(await response.json()).toMatchObject({
      status: 'ready',
      service: 'reaper',
      checks: [{ name: 'database', status: 'ok' }],
    });
  });

  test('is 503 and names what fails and what takes too long, without the reason', async () => {
    const signals: AbortSignal[] = [];
    const url = await start({
      checks: [
        { name: 'schema', check: () => {} },
        {
          name: 'database',
          check() {
            throw new Error('password authentication failed for postgres://u:p@h/db');
          },
        },
        {
          name: 'leader',
          timeoutMs: 5,
          check: async (signal) => {
            signals.push(signal);
            await never();
          },
        },
      ],
    });
    const response = await fetch(`${url}/health`);
    expect(response.status).toBe(503);
    const body = await response.text();
    expect(JSON.parse(body)).toMatchObject({
      status: 'not_ready',
      checks: [
        { name: 'schema', status: 'ok' },
        { name: 'database', status: 'failed' },
        { name: 'leader', status: 'timeout' },
      ],
    });
    expect(body).not.toContain('password');
    expect(signals[0]!.aborted).toBe(true);
  });

  test('each check that fails is counted, from 0 on', async () => {
    const metrics = createMetrics({ service: 'reaper' });
    let isAway = false;
    const check = (): void => {
      if (isAway) throw new Error('away');
    };
    const checks = [
      { name: 'schema', check: () => {} },
      { name: 'database', check },
    ];
    const url = await start({ metrics, checks });
    const failures = async (): Promise<string[]> =>
      (await (await fetch(`${url}/metrics`)).text()).match(
        /(?<=^broker_health_check_failures_total\{check=").*/gm,
      ) ?? [];
    await fetch(`${url}/health`);
    expect(await failures()).toEqual([
      'schema",service="reaper"} 0',
      'database",service="reaper"} 0',
    ]);
    isAway = true;
    for (let n = 0; n < 2; n += 1) await fetch(`${url}/health`);
    expect(await failures()).toEqual([
      'schema",service="reaper"} 0',
      'database",service="reaper"} 2',
    ]);
  });

  test('is 503 while the process drains, and asks nobody', async () => {
    const check = vi.fn();
    const url = await start({ checks: [{ name: 'database', check }], isDraining: () => true });
    const response = await fetch(`${url}/health`);
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ status: 'draining' });
    expect(check).not.toHaveBeenCalled();
  });

  test('requests at the same time share one round of checks', async () => {
    const gate = Promise.withResolvers<void>();
    const check = vi.fn(() => gate.promise);
    const { health } = createOpsHandlers({
      service: 'reaper',
      checks: [{ name: 'database', check }],
      isDraining: () => false,
      metrics: createMetrics({ service: 'reaper' }),
    });
    const answers = Array.from({ length: 20 }, () => health());
    gate.resolve();
    for (const answer of await Promise.all(answers)) expect(answer.status).toBe(200);
    expect(check).toHaveBeenCalledTimes(1);
    await health();
    expect(check).toHaveBeenCalledTimes(2);
  });

  test('is logged when it changes, not each time', async () => {
    const logger = { warn: vi.fn(), info: vi.fn() };
    let isAway = false;
    const check = (): void => {
      if (isAway) throw new Error('away');
    };
    const url = await start({ checks: [{ name: 'database', check }], logger });
    const ask = async (): Promise<number> => (await fetch(`${url}/health`)).status;
    expect(await ask()).toBe(200);
    isAway = true;
    expect([await ask(), await ask(), await ask()]).toEqual([503, 503, 503]);
    isAway = false;
    expect([await ask(), await ask()]).toEqual([200, 200]);
    expect(logger.warn.mock.calls).toEqual([
      [{ check: 'database', err: new Error('away') }, 'not ready'],
    ]);
    expect(logger.info.mock.calls).toEqual([['ready again']]);
  });
});

describe('the server', () => {
  test('serves metrics in the text format', async () => {
    const response = await fetch(`${await start()}/metrics`);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toContain('text/plain; version=0.0.4');
    expect(await response.text()).toContain('broker_build_info{version=');
  });

  test('serves metrics in OpenMetrics to who asks for it', async () => {
    const accept = 'application/openmetrics-text;version=1.0.0,text/plain;q=0.5';
    const response = await fetch(`${await start()}/metrics`, { headers: { accept } });
    expect(response.headers.get('content-type')).toContain('application/openmetrics-text');
    expect(await response.text()).toMatch(/# EOF\n$/);
  });

  test('answers HEAD without a body, other methods with 405, other paths with 404', async () => {
    const url = await start();
    const head = await fetch(`${url}/health?x=1`, { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
    expect((await fetch(`${url}/health`, { method: 'POST', body: 'x' })).status).toBe(405);
    expect((await fetch(`${url}/other`)).status).toBe(404);
    expect((await fetch(`${url}/__proto__`)).status).toBe(404);
  });

  test('a taken port is an error that names it', async () => {
    await start();
    const { port } = server!;
    const handlers = createOpsHandlers({
      service: 'reaper',
      checks: [],
      isDraining: () => false,
      metrics: createMetrics({ service: 'reaper' }),
    });
    await expect(startOpsServer({ host: '127.0.0.1', port, handlers })).rejects.toThrow(
      `HEALTH_PORT: port ${port} on 127.0.0.1 is already in use`,
    );
  });

  test('closes with idle and silent connections open, and is safe twice', async () => {
    const url = await start();
    await fetch(`${url}/health`); // keeps its connection
    const silent = connect(server!.port, '127.0.0.1');
    await once(silent, 'connect');
    const silentEnd = once(silent, 'close');
    silent.resume();
    await Promise.all([server!.close(), server!.close()]);
    await silentEnd;
    await expect(fetch(`${url}/health`)).rejects.toThrow('fetch failed');
  });

  test('lets a running request end before it closes', async () => {
    const gate = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    const check = async (): Promise<void> => {
      asked.resolve();
      await gate.promise;
    };
    const url = await start({ checks: [{ name: 'database', check }] });
    const response = fetch(`${url}/health`);
    await asked.promise;
    const closed = server!.close();
    gate.resolve();
    expect((await response).status).toBe(200);
    await closed;
  });
});
