import { Counter, Gauge, Histogram } from 'prom-client';
import { batchEvents, callSeconds } from './buckets.ts';
import type { MetricSource } from './source.ts';

/** What was published. */
export function createPublishMetrics({ registry, topics }: MetricSource) {
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
      const topic = topics.labelOf(call.topic);
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
