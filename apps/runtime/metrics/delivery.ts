import { Counter, Gauge, Histogram } from 'prom-client';
import { batchEvents, callSeconds, latencySeconds } from './buckets.ts';
import { EventHistogram } from './event-histogram.ts';
import type { MetricSource } from './source.ts';

/** What was handed out. */
export function createDeliveryMetrics({ registry, subscriptions }: MetricSource) {
  const registers = [registry];
  const delivered = new Counter({
    name: 'broker_events_delivered_total',
    help: 'Events handed out, each delivery counted',
    labelNames: ['subscription'],
    registers,
  });
  const redelivered = new Counter({
    name: 'broker_events_redelivered_total',
    help: 'Deliveries of events that had cost an attempt before',
    labelNames: ['subscription'],
    registers,
  });
  const wait = new EventHistogram({
    name: 'broker_queue_wait_seconds',
    help: 'From when an event was due to when it was handed out',
    labelName: 'subscription',
    buckets: latencySeconds,
    registry,
  });
  const waiting = new Gauge({
    name: 'broker_receive_waiting',
    help: 'Receive requests that wait in this process for events',
    registers,
  });
  return {
    /** Events that were due at one time were handed out, `redelivered` of them not for the first time. */
    recordDelivered(entry: {
      subscription: string;
      events: number;
      redelivered: number;
      waitSeconds: number;
      /** Of a trace that shows one of them. */
      traceId?: string | undefined;
    }): void {
      const { events, traceId } = entry;
      const subscription = subscriptions.labelOf(entry.subscription);
      delivered.inc({ subscription }, events);
      if (entry.redelivered > 0) redelivered.inc({ subscription }, entry.redelivered);
      // A clock that stepped back must not show as a negative wait.
      wait.observe(subscription, Math.max(0, entry.waitSeconds), { events, traceId });
    },
    /** So many receive requests wait in this process. */
    setReceiveWaiting(requests: number): void {
      waiting.set(requests);
    },
  };
}

/** How claims go. */
export function createClaimMetrics({ registry }: MetricSource) {
  const registers = [registry];
  const claims = new Counter({
    name: 'broker_claims_total',
    help: 'Claims, by whether something was there',
    labelNames: ['result'],
    registers,
  });
  for (const result of ['found', 'empty', 'failed'] as const) claims.inc({ result }, 0);
  const size = new Histogram({
    name: 'broker_claim_events',
    help: 'Events that one claim leased, of claims that found something',
    buckets: batchEvents,
    registers,
  });
  const duration = new Histogram({
    name: 'broker_claim_duration_seconds',
    help: 'Duration of one claim, whatever it found',
    buckets: callSeconds,
    registers,
  });
  return {
    /** A claim has ended; `events` is undefined when it failed. */
    recordClaim(claim: { events: number | undefined; durationSeconds: number }): void {
      const { events, durationSeconds } = claim;
      claims.inc({ result: events === undefined ? 'failed' : events > 0 ? 'found' : 'empty' });
      duration.observe(durationSeconds);
      if (events !== undefined && events > 0) size.observe(events);
    },
  };
}
