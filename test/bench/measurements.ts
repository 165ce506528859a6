import { claim } from '#db/claim.ts';
import { publishBatch } from '#db/publish.ts';
import { settle } from '#db/settle.ts';
import { LowWaterMarks } from '#db/low-water-marks.ts';
import { copyInto, copyRows } from './copy-into.ts';
import { batchBody, eventBody, newEvents } from './events.ts';
import { startHelper } from './helper-process.ts';
import { HttpConnection, type HttpTarget, postRequest } from './http-connection.ts';
import { type Lab, lanes, type Place } from './lab.ts';
import { type Sample, type Step, takeSample } from './sample.ts';

export interface Measurement {
  readonly name: string;
  readonly connections: number;
  /** Events (requests) of one step. */
  readonly batch: number;
  take(lab: Lab, seconds: number): Promise<Sample>;
}

const copyBatch = 10_000;
const receiveBatch = 100;
const leaseMs = 60_000;
const statementTimeoutMs = 5000;

export const pullMeasurements: readonly Measurement[] = [
  {
    name: 'COPY of the same rows',
    connections: lanes,
    batch: copyBatch,
    take: async (lab, seconds) => {
      const steps = lab.copiers.map((client): Step => {
        let next = copyRows(copyBatch);
        return async () => {
          const copying = copyInto(client, next);
          // made while the server works
          next = copyRows(copyBatch);
          await copying;
          return copyBatch;
        };
      });
      return takeSample(lab, seconds, steps);
    },
  },
  // first, while there is little for autovacuum to do: its WAL is counted too
  httpPublish(1, 1),
  httpPublish(64, 1),
  httpPublish(4, 500),
  inProcessPublish(100),
  inProcessPublish(500),
  httpConsume(1, 60_000),
  httpConsume(4, 90_000),
  inProcessConsume(100, 120_000),
  inProcessConsume(1000, 250_000),
  {
    name: 'HTTP client on a server that only answers',
    connections: 64,
    batch: 1,
    take: async (lab, seconds) => measureClient(lab, seconds),
  },
];

function inProcessPublish(batch: number): Measurement {
  return {
    name: 'publish_batch, in process',
    connections: lanes,
    batch,
    take: async (lab, seconds) => {
      const { topicId } = await lab.place(0);
      const events = newEvents(batch);
      const step: Step = async () => {
        const { status } = await publishBatch(lab.db, topicId, [{ events }]);
        if (status !== 'published') throw new Error(status);
        return batch;
      };
      return takeSample(lab, seconds, Array<Step>(lanes).fill(step));
    },
  };
}

function httpPublish(connections: number, batch: number): Measurement {
  return {
    name: 'publish over HTTP',
    connections,
    batch,
    take: async (lab, seconds) => {
      const { api } = lab;
      const { topic } = await lab.place(0);
      const body = batch === 1 ? eventBody(0) : batchBody(batch);
      const request = postRequest(api, `/api/v1/topics/${topic}/events`, body);
      return withConnections(api.port, connections, async (all) => {
        const steps = all.map((connection): Step => async () => {
          const { status, body: answer } = await connection.send(request);
          if (status !== 202) throw new Error(`${status} ${answer}`);
          return batch;
        });
        return takeSample(lab, seconds, steps);
      });
    },
  };
}

/** `waitingPerSecond`: more than it can take. */
function httpConsume(consumers: number, waitingPerSecond: number): Measurement {
  return {
    name: 'receive + ack over HTTP',
    connections: consumers,
    batch: receiveBatch,
    take: async (lab, seconds) => {
      const { api } = lab;
      const { subscription } = await lab.place(waitingPerSecond * seconds);
      return withConnections(api.port, consumers, async (all) => {
        const steps = all.map((connection) => receiveAndAck(connection, api, subscription));
        return takeSample(lab, seconds, steps);
      });
    },
  };
}

function receiveAndAck(connection: HttpConnection, api: HttpTarget, subscription: string): Step {
  const path = `/api/v1/subscriptions/${subscription}`;
  const asked = JSON.stringify({ max_messages: receiveBatch, wait_seconds: 0 });
  const receive = postRequest(api, `${path}/receive`, asked);
  return async () => {
    const received = await connection.send(receive);
    if (received.status !== 200) throw new Error(`${received.status} ${received.body}`);
    const leaseIds = Array.from(received.body.matchAll(/"lease_id":"([^"]+)"/g), ([, id]) => id);
    if (leaseIds.length === 0) return 0;
    const settled = JSON.stringify({ lease_ids: leaseIds });
    const acked = await connection.send(postRequest(api, `${path}/ack`, settled));
    if (acked.status !== 200 || !acked.body.endsWith('"failed":[]}')) {
      throw new Error(`${acked.status} ${acked.body}`);
    }
    return leaseIds.length;
  };
}

function inProcessConsume(batch: number, waitingPerSecond: number): Measurement {
  return {
    name: 'claim + settle, in process',
    connections: lanes,
    batch,
    take: async (lab, seconds) => {
      const place = await lab.place(waitingPerSecond * seconds);
      const steps = Array.from({ length: lanes }, () => claimAndSettle(lab, place, batch));
      return takeSample(lab, seconds, steps);
    },
  };
}

/** As the API does it, with a low-water mark. */
function claimAndSettle({ db }: Lab, { topicId, subscriptionId }: Place, batch: number): Step {
  const marks = new LowWaterMarks({ lookBackMs: statementTimeoutMs * 2 });
  return async () => {
    const mark = marks.next(subscriptionId, performance.now());
    const room = { subscription_id: subscriptionId, events: batch, bytes: 8 << 20, mark };
    const events = await claim(db, topicId, [room], { leaseMs });
    if (events.length === 0) return 0;
    marks.saw(subscriptionId, events, performance.now());
    const settlements = events.map((event) => ({
      lease: { ...event, topic_id: topicId },
      outcome: 'acked' as const,
    }));
    const results = await settle(db, topicId, subscriptionId, settlements);
    if (results.some((result) => result !== 'acked')) throw new Error('a lease was lost');
    return events.length;
  };
}

async function measureClient(lab: Lab, seconds: number): Promise<Sample> {
  using server = startHelper('echo-process.ts');
  const port = await server.port();
  const request = postRequest({ port, apiKey: 'none' }, '/', eventBody(0));
  return await withConnections(port, 64, async (all) => {
    const steps = all.map((connection): Step => async () => {
      await connection.send(request);
      return 1;
    });
    return takeSample(lab, seconds, steps);
  });
}

async function withConnections<Result>(
  port: number,
  count: number,
  use: (connections: HttpConnection[]) => Promise<Result>,
): Promise<Result> {
  const opening = Array.from({ length: count }, async () => HttpConnection.open(port));
  const connections = await Promise.all(opening);
  try {
    return await use(connections);
  } finally {
    for (const connection of connections) connection.close();
  }
}
