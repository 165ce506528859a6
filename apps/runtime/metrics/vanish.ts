import type { Counter, Gauge } from 'prom-client';

/** Takes all values away, the one without labels too: 0 would be an answer. */
export function vanish(metric: Counter | Gauge): void {
  metric.reset();
  // of a metric with labels it names none, and so changes nothing
  metric.remove({});
}
