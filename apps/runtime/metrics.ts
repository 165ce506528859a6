import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import { version } from './version.ts';

/** What the leader counts of one subscription. */
export type BacklogSample = {
  readonly topic: string;
  readonly subscription: string;
  readonly waiting: number;
  readonly leased: number;
  readonly oldestWaitingSeconds: number;
  readonly deadLetters: number;
};

export type SettleOutcome = 'acked' | 'nacked' | 'released' | 'deferred' | 'dead' | 'lost';

/** What a push request came to: a class of HTTP status, or no answer at all. */
export type PushResult = '2xx' | '3xx' | '4xx' | '5xx' | 'failed';

export type Metrics = ReturnType<typeof createMetrics>;

const callSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
const requestSeconds = [...callSeconds, 10, 25];
const latencySeconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 1800, 7200];
const batchEvents = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000];

/**
 * The metrics of one process, in a registry of their own, with one function per business fact.
 * Everything carries the label `service`.
 */
export function createMetrics(options: { readonly service: string }) {
  const registry = new Registry();
  registry.setDefaultLabels({ service: options.service });
  collectDefaultMetrics({ register: registry });
  // sums of gauges that are there too, under names that are for counters
  for (const kind of ['handles', 'requests', 'resources']) {
    registry.removeSingleMetric(`nodejs_active_${kind}_total`);
  }
  const buildInfo = new Gauge({
    name: 'broker_build_info',
    help: 'Always 1; the version is the label',
    labelNames: ['version'],
    registers: [registry],
  });
  buildInfo.set({ version }, 1);
  return {
    registry,
    ...createPublishMetrics(registry),
    ...createDeliveryMetrics(registry),
    ...createPushMetrics(registry),
    ...createLeaseMetrics(registry),
    ...createLeaderMetrics(registry),
    ...createProcessMetrics(registry),
  };
}

function createPublishMetrics(registry: Registry) {
  const registers = [registry];
  const published = new Counter({
    name: 'broker_events_published_total',
    help: 'Events of publishes that were answered, by what became of them',
    labelNames: ['topic', 'result'],
    registers,
  });
  const duration = new Histogram({
    name: 'broker_publish_duration_seconds',
    help: 'Duration of one publish call to the database, commit included',
    buckets: callSeconds,
    registers,
  });
  const batch = new Histogram({
    name: 'broker_publish_batch_events',
    help: 'Events that went to the database in one publish call',
    buckets: batchEvents,
    registers,
  });
  const buffered = new Gauge({
    name: 'broker_publish_buffer_events',
    help: 'Events that wait in this process for their publish call',
    registers,
  });

  type Published = { topic: string; published: number; duplicates: number; conflicts: number };
  return {
    /** One publish call to the database was committed. */
    recordPublish(call: Published & { durationSeconds: number }): void {
      const { topic } = call;
      if (call.published > 0) published.inc({ topic, result: 'published' }, call.published);
      if (call.duplicates > 0) published.inc({ topic, result: 'duplicate' }, call.duplicates);
      if (call.conflicts > 0) published.inc({ topic, result: 'conflict' }, call.conflicts);
      duration.observe(call.durationSeconds);
      batch.observe(call.published + call.duplicates + call.conflicts);
    },
    /** So many events wait in this process for their publish call. */
    setPublishBuffer(events: number): void {
      buffered.set(events);
    },
  };
}

function createDeliveryMetrics(registry: Registry) {
  const registers = [registry];
  const delivered = new Counter({
    name: 'broker_events_delivered_total',
    help: 'Events handed out, each delivery counted',
    labelNames: ['subscription'],
    registers,
  });
  const latency = new Histogram({
    name: 'broker_delivery_latency_seconds',
    help: 'From publish to being handed out; one observation per group of events that travel together',
    labelNames: ['subscription'],
    buckets: latencySeconds,
    registers,
  });
  const settled = new Counter({
    name: 'broker_events_settled_total',
    help: 'Events whose lease was settled, by outcome; lost: the lease was no longer held',
    labelNames: ['subscription', 'outcome'],
    registers,
  });
  const waiting = new Gauge({
    name: 'broker_receive_waiting',
    help: 'Receive requests that wait in this process for events',
    registers,
  });
  return {
    /** Events of one entry were handed out, so long after they were published. */
    recordDelivered(entry: { subscription: string; events: number; latencySeconds: number }): void {
      const { subscription } = entry;
      delivered.inc({ subscription }, entry.events);
      // A clock that stepped back must not show as a negative latency.
      latency.observe({ subscription }, Math.max(0, entry.latencySeconds));
    },
    /** Leases of so many events were settled with this outcome. */
    recordSettled(settle: { subscription: string; outcome: SettleOutcome; events: number }): void {
      const { subscription, outcome, events } = settle;
      if (events > 0) settled.inc({ subscription, outcome }, events);
    },
    /** So many receive requests wait in this process. */
    setReceiveWaiting(requests: number): void {
      waiting.set(requests);
    },
  };
}

function createPushMetrics(registry: Registry) {
  const registers = [registry];
  const requests = new Counter({
    name: 'broker_push_requests_total',
    help: 'Requests sent to endpoints, by what they came to',
    labelNames: ['subscription', 'result'],
    registers,
  });
  const duration = new Histogram({
    name: 'broker_push_request_duration_seconds',
    help: 'Duration of requests to endpoints, until the answer was read',
    labelNames: ['result'],
    buckets: requestSeconds,
    registers,
  });
  const gauge = (name: string, help: string) => new Gauge({ name, help, registers });
  const inFlight = gauge('broker_push_in_flight', 'Requests to endpoints that are under way');
  const buffered = gauge('broker_push_buffer_events', 'Events that are leased and wait for a turn');
  const open = gauge('broker_push_breakers_open', 'Subscriptions whose endpoint is only probed');
  return {
    /** An endpoint was asked. */
    recordPushRequest(request: {
      subscription: string;
      result: PushResult;
      durationSeconds: number;
    }): void {
      const { subscription, result, durationSeconds } = request;
      requests.inc({ subscription, result });
      duration.observe({ result }, durationSeconds);
    },
    /** What this worker has in hand. */
    setPushState(state: { inFlight: number; buffered: number; breakersOpen: number }): void {
      inFlight.set(state.inFlight);
      buffered.set(state.buffered);
      open.set(state.breakersOpen);
    },
  };
}

function createBacklogGauges(registry: Registry) {
  const labelNames = ['topic', 'subscription'] as const;
  const gauge = (name: string, help: string) =>
    new Gauge({ name, help, labelNames, registers: [registry] });
  return {
    waiting: gauge('broker_waiting_events', 'Events that wait, by the last sample of the leader'),
    leased: gauge('broker_leased_events', 'Events that are leased, by the last sample'),
    oldest: gauge('broker_oldest_waiting_seconds', 'Age of the oldest event that waits and is due'),
    dead: gauge('broker_dead_letters', 'Dead letters that are kept, by the last sample'),
  };
}

/** Of what the leader's duties take back. */
function createLeaseMetrics(registry: Registry) {
  const registers = [registry];
  const leasesExpired = new Counter({
    name: 'broker_leases_expired_total',
    help: 'Leases that ran out and were taken back',
    labelNames: ['topic'],
    registers,
  });
  const leasesTakenOver = new Counter({
    name: 'broker_leases_taken_over_total',
    help: 'Events whose lease was taken from a worker that is gone',
    labelNames: ['topic'],
    registers,
  });
  const eventsExpired = new Counter({
    name: 'broker_events_expired_total',
    help: 'Events whose retention ended before they were acked',
    labelNames: ['topic', 'subscription'],
    registers,
  });
  return {
    recordLeasesExpired(reap: { topic: string; leases: number }): void {
      if (reap.leases > 0) leasesExpired.inc({ topic: reap.topic }, reap.leases);
    },
    recordLeasesTakenOver(taken: { topic: string; leases: number }): void {
      if (taken.leases > 0) leasesTakenOver.inc({ topic: taken.topic }, taken.leases);
    },
    recordEventsExpired(expiry: { topic: string; subscription: string; events: number }): void {
      const { events, ...labels } = expiry;
      if (events > 0) eventsExpired.inc(labels, events);
    },
  };
}

function createLeaderMetrics(registry: Registry) {
  const registers = [registry];
  const gauges = createBacklogGauges(registry);
  const leader = new Gauge({
    name: 'broker_leader',
    help: '1 in the process that leads, else 0',
    registers,
  });
  const term = new Gauge({
    name: 'broker_leader_term',
    help: 'Term in which this process leads or last led',
    registers,
  });
  const duty = new Histogram({
    name: 'broker_duty_duration_seconds',
    help: 'Duration of one run of a duty of the leader',
    labelNames: ['duty', 'result'],
    buckets: requestSeconds,
    registers,
  });

  // What is not in the new sample is gone, and must not stay at its last value.
  function setBacklog(samples: readonly BacklogSample[]): void {
    for (const gauge of Object.values(gauges)) gauge.reset();
    for (const { topic, subscription, ...sample } of samples) {
      gauges.waiting.set({ topic, subscription }, sample.waiting);
      gauges.leased.set({ topic, subscription }, sample.leased);
      gauges.oldest.set({ topic, subscription }, sample.oldestWaitingSeconds);
      gauges.dead.set({ topic, subscription }, sample.deadLetters);
    }
  }
  return {
    /** The leader has sampled the backlog: all subscriptions that there are. */
    setBacklog,
    /** This process leads in `term`, or leads no longer: its samples then vanish. */
    setLeader(state: { isLeader: boolean; term: number }): void {
      leader.set(state.isLeader ? 1 : 0);
      term.set(state.term);
      if (!state.isLeader) setBacklog([]);
    },
    /** One run of a duty has ended; `fenced`: another process leads by now. */
    recordDuty(run: {
      duty: string;
      result: 'done' | 'failed' | 'fenced';
      durationSeconds: number;
    }): void {
      duty.observe({ duty: run.duty, result: run.result }, run.durationSeconds);
    },
  };
}

function createProcessMetrics(registry: Registry) {
  const registers = [registry];
  const requests = new Counter({
    name: 'broker_http_requests_total',
    help: 'HTTP requests that were answered',
    labelNames: ['method', 'route', 'status'],
    registers,
  });
  const duration = new Histogram({
    name: 'broker_http_request_duration_seconds',
    help: 'Duration of HTTP requests; a receive that waits for events counts its wait',
    labelNames: ['method', 'route'],
    buckets: requestSeconds,
    registers,
  });
  const reconnects = new Counter({
    name: 'broker_database_reconnects_total',
    help: 'Times that the direct connection to the database was made again',
    registers,
  });
  const wakeUps = new Counter({
    name: 'broker_wakeups_total',
    help: 'Wake-ups sent by this process and received from the database',
    labelNames: ['kind'],
    registers,
  });
  return {
    /** A request was answered. `route` is the pattern, not the path: the path has names in it. */
    recordHttpRequest(request: {
      method: string;
      route: string;
      status: number;
      durationSeconds: number;
    }): void {
      const { method, route, status, durationSeconds } = request;
      requests.inc({ method, route, status });
      duration.observe({ method, route }, durationSeconds);
    },
    recordDatabaseReconnect(): void {
      reconnects.inc();
    },
    recordWakeUps(kind: 'sent' | 'received', count = 1): void {
      wakeUps.inc({ kind }, count);
    },
  };
}
