import { createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { Cluster } from '#test/support/cluster.ts';
import { eventually } from '#test/support/eventually.ts';
import { startHelper } from './helper-process.ts';
import { HttpConnection, postRequest } from './http-connection.ts';
import type { Lab } from './lab.ts';
import type { Measurement } from './measurements.ts';
import { median, type Result } from './results.ts';
import { quantile, type Sample, type Step, takeSample } from './sample.ts';

/** The earlier broker's, and up. */
const workerCounts = [8, 32, 128, 256];
/** One subscription gets three quarters of a worker at most; several use all of it. */
const subscriptions = 4;
/** Of each subscription; more than a worker can send. */
const waitingPerSecond = 3000;
const lookMs = 50;
const silenceMaxMs = 5000;

/** Each worker count beside bare POSTs with as many connections. */
export const pushMeasurements: readonly Measurement[] = [
  ...workerCounts.flatMap((count) => [pushToSink(count), barePosts(count)]),
  pushOneByOne({ producers: 1, pauseMs: 50 }),
  pushOneByOne({ producers: 1, pauseMs: 0 }),
  pushOneByOne({ producers: 16, pauseMs: 0 }),
];

/** What a worker reaches, as a share of the bare POSTs with as many connections: the median of the rounds' own shares. */
export function ratiosOf(results: readonly Result[]): string[] {
  return workerCounts.flatMap((count) => {
    const roundsOf = (measurement: Measurement): readonly number[] =>
      results.find(({ name, connections }) => name === measurement.name && connections === count)
        ?.roundsEventsPerSecond ?? [];
    const bare = roundsOf(barePosts(count));
    const shares = roundsOf(pushToSink(count)).map((rate, round) => rate / (bare[round] ?? 0));
    if (shares.length === 0 || bare.length === 0) return [];
    const share = (median(shares) * 100).toFixed(0);
    return [`push with WORKER_COUNT=${count}: ${share} % of bare undici POSTs`];
  });
}

function pushToSink(workerCount: number): Measurement {
  return {
    name: `push: worker, WORKER_COUNT=${workerCount}`,
    connections: workerCount,
    batch: 1,
    take: async (lab, seconds) => {
      using sink = startHelper('sink-process.ts');
      const url = `http://127.0.0.1:${await sink.port()}/`;
      await using place = await lab.pushPlace(url, subscriptions);
      await place.fill(Math.ceil(waitingPerSecond * (seconds + 2)));
      await using worker = await startWorker(lab, workerCount);
      return await sampleOfSink(lab, { url, pid: worker.workers[0]?.pid ?? 0, seconds });
    },
  };
}

function barePosts(connections: number): Measurement {
  return {
    name: 'push: bare undici POSTs',
    connections,
    batch: 1,
    take: async (lab, seconds) => {
      using sink = startHelper('sink-process.ts');
      const port = await sink.port();
      using client = startHelper('undici-process.ts', String(port), String(connections));
      return await sampleOfSink(lab, {
        url: `http://127.0.0.1:${port}/`,
        pid: client.pid,
        seconds,
      });
    },
  };
}

/** Single events, each published when the one before it has arrived, or some time later; how long each is on its way. */
function pushOneByOne({
  producers,
  pauseMs,
}: {
  readonly producers: number;
  readonly pauseMs: number;
}): Measurement {
  const pace = pauseMs === 0 ? 'one after the other' : `with ${pauseMs} ms between`;
  return {
    name: `push: single events ${pace}`,
    connections: producers,
    batch: 1,
    take: async (lab, seconds) => {
      using arrivals = await startArrivals();
      await using place = await lab.pushPlace(arrivals.url, 1);
      await using worker = await startWorker(lab, undefined);
      const opening = Array.from({ length: producers }, async () =>
        HttpConnection.open(lab.api.port),
      );
      const connections = await Promise.all(opening);
      const path = `/api/v1/topics/${place.topic}/events`;
      let number = 0;
      const latencies: number[] = [];
      const steps = connections.map((connection): Step => async () => {
        await delay(pauseMs);
        number += 1;
        const sentAt = performance.now();
        const arrived = arrivals.of(number);
        const body = `{"type":"order.created","source":"/bench","data":{"number":${number}}}`;
        const { status } = await connection.send(postRequest(lab.api, path, body));
        if (status !== 202) throw new Error(`publish was answered ${status}`);
        await arrived;
        latencies.push(performance.now() - sentAt);
        return 1;
      });
      const api = { pid: worker.workers[0]?.pid ?? 0 };
      const sample = await takeSample({ control: lab.control, api }, seconds, steps);
      for (const connection of connections) connection.close();
      return { ...sample, p50Ms: quantile(latencies, 0.5), p99Ms: quantile(latencies, 0.99) };
    },
  };
}

async function startWorker(lab: Lab, workerCount: number | undefined): Promise<Cluster> {
  return Cluster.start({
    databaseUrl: lab.databaseUrl,
    apis: 0,
    workers: 1,
    reapers: 0,
    env: {
      LOG_LEVEL: 'warn',
      NODE_ENV: 'development',
      ...(workerCount !== undefined && { WORKER_COUNT: String(workerCount) }),
    },
  });
}

/** Counts what a sink gets, from when it gets something; there are no latencies in that. */
async function sampleOfSink(
  { control }: Lab,
  { url, pid, seconds }: { readonly url: string; readonly pid: number; readonly seconds: number },
): Promise<Sample> {
  const count = async (): Promise<number> => Number(await (await fetch(url)).text());
  let seen = 0;
  await eventually(async () => {
    seen = await count();
    if (seen === 0) throw new Error('nothing yet');
  });
  const look: Step = async () => {
    const before = seen;
    const deadline = performance.now() + silenceMaxMs;
    while (seen === before) {
      if (performance.now() > deadline) throw new Error('the sink gets nothing more');
      await delay(lookMs);
      seen = await count();
    }
    return seen - before;
  };
  const sample = await takeSample({ control, api: { pid } }, seconds, [look]);
  return { ...sample, p50Ms: Number.NaN, p99Ms: Number.NaN };
}

/** An endpoint in this process, so that one clock has both ends of a delivery. */
async function startArrivals() {
  const waiting = new Map<number, () => void>();
  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (piece: string) => (body += piece));
    request.once('end', () => {
      const { number } = JSON.parse(body) as { number: number };
      waiting.get(number)?.();
      waiting.delete(number);
      response.writeHead(204).end();
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    of: async (number: number): Promise<void> =>
      new Promise((resolve) => waiting.set(number, resolve)),
    [Symbol.dispose]: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}
