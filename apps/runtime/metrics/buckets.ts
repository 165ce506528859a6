/** Of one call to the database. */
export const callSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
/** Of a request over HTTP. */
export const requestSeconds = [...callSeconds, 10, 25];
/** Of what an event goes through. */
export const latencySeconds = [
  0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 1800, 7200,
];
/** Of one batch. */
export const batchEvents = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000];
