import type { Extreme, ExtremeKind, SampledSubscription } from '#db/backlog-extremes.ts';
import type { BrokerStatus } from '#db/stats.ts';

/** What can be wrong with the broker as a whole, the worst first; part of the contract, as the codes of problems are. */
export const statusProblemCodes = [
  'no_leader',
  'topic_full',
  'no_worker',
  'sample_stale',
  'oldest_waiting_late',
  'subscription_halted',
  'process_silent',
  'versions_differ',
  'dead_letters',
] as const;

export type StatusProblemCode = (typeof statusProblemCodes)[number];

export interface StatusProblem {
  readonly code: StatusProblemCode;
  /** A sentence for people. */
  readonly message: string;
}

export type Extremes = Readonly<Record<ExtremeKind, Extreme>>;

/** From when on something counts as wrong. */
export const statusLimits = {
  /** Followers remove a leader after 3 s. */
  leaderSilentSeconds: 5,
  /** The leader samples each second; with a long queue less often. */
  sampleAgeSeconds: 15,
  lateSeconds: 300,
  /** A worker claims at once what is due. */
  pushDueSeconds: 5,
  /** Problems of one kind that are named; of the others the number is told. */
  eachMax: 5,
} as const;

/** What is wrong, the worst first. */
export function statusProblems(status: BrokerStatus, extremes: Extremes): StatusProblem[] {
  const found: Readonly<Record<StatusProblemCode, readonly string[]>> = {
    no_leader: noLeader(status),
    topic_full: named(extremes.full, fullMessage, 'topics are full'),
    no_worker: noWorker(status, extremes.push_due),
    sample_stale: staleSample(status),
    oldest_waiting_late: named(extremes.late, lateMessage, 'subscriptions are as late'),
    subscription_halted: named(
      extremes.halted,
      haltedMessage,
      'subscriptions are paused or disabled',
    ),
    process_silent: silentProcesses(status),
    versions_differ: differingVersions(status),
    dead_letters: named(extremes.dead, deadMessage, 'subscriptions have dead letters'),
  };
  return statusProblemCodes.flatMap((code) => found[code].map((message) => ({ code, message })));
}

function noLeader({ leader, processes }: BrokerStatus): string[] {
  const meanwhile =
    'leases that ran out are not taken back, redrives do not run, and no partitions are made.';
  const age = leader.heartbeat_age_seconds;
  if (leader.holder !== null && age !== null && age > statusLimits.leaderSilentSeconds) {
    return [`The leader ${leader.holder} has not been heard of for ${ageOf(age)}: ${meanwhile}`];
  }
  if (leader.holder !== null) return [];
  const runs = processes.some(({ service, state }) => service === 'reaper' && state === 'alive');
  return [`${runs ? 'No reaper leads' : 'No reaper runs'}: ${meanwhile}`];
}

function noWorker({ processes }: BrokerStatus, { total, first }: Extreme): string[] {
  const runs = processes.some(({ service, state }) => service === 'worker' && state === 'alive');
  const [longest] = first;
  if (runs || longest === undefined) return [];
  const others = total === 1 ? '' : `, nor to ${total - 1} more`;
  return [`No worker runs: nothing is pushed to ${nameOf(longest)}${others}.`];
}

function staleSample({ backlog }: BrokerStatus): string[] {
  const age = backlog.sample_age_seconds;
  if (age === null) return ['The backlog was never sampled: all of its numbers are missing.'];
  if (age <= statusLimits.sampleAgeSeconds) return [];
  return [`The backlog was last sampled ${ageOf(age)} ago: its numbers are of then.`];
}

function silentProcesses({ processes }: BrokerStatus): string[] {
  const silent = processes.filter(({ state }) => state !== 'alive');
  const messages = silent.slice(0, statusLimits.eachMax).map((process) => {
    const head = `The ${process.service} ${process.instance} has not been heard of for ${ageOf(process.heartbeat_age_seconds)}`;
    return process.state === 'gone'
      ? `${head}: the others have its leases.`
      : `${head}: it hangs, is cut off, or has ended without a word.`;
  });
  return [...messages, ...remainder(silent.length - messages.length, 'processes are silent')];
}

function differingVersions({ processes }: BrokerStatus): string[] {
  const alive = processes.filter(({ state }) => state === 'alive');
  const counts = new Map<string, number>();
  for (const { version } of alive) counts.set(version, (counts.get(version) ?? 0) + 1);
  if (counts.size < 2) return [];
  const shown = [...counts].slice(0, statusLimits.eachMax);
  const parts = shown.map(([version, count]) => `${version} (${count})`);
  return [`Processes of several versions run: ${parts.join(', ')}. Is an update under way?`];
}

function fullMessage({ topic, subscription, ...sample }: SampledSubscription): string {
  const { waiting_events: waiting, max_backlog: max } = sample;
  return `The topic ${topic} is full: producers get 503. ${subscription} has ${count(waiting, 'event')} waiting, ${max} may.`;
}

function lateMessage(subscription: SampledSubscription): string {
  const late = ageOf(subscription.oldest_waiting_seconds ?? 0);
  const who = subscription.type === 'pull' ? 'receives' : 'is reached';
  return `The oldest event of ${nameOf(subscription)} has been due for ${late}: nobody ${who}, or too slowly.`;
}

function haltedMessage(subscription: SampledSubscription): string {
  const { state, waiting_events: waiting } = subscription;
  return `${nameOf(subscription)} is ${state}, and ${count(waiting, 'event')} ${waiting === 1 ? 'waits' : 'wait'}.`;
}

function deadMessage(subscription: SampledSubscription): string {
  return `${nameOf(subscription)} has ${count(subscription.dead_letters, 'dead letter')}.`;
}

function named(
  { total, first }: Extreme,
  message: (subscription: SampledSubscription) => string,
  others: string,
): string[] {
  const messages = first.slice(0, statusLimits.eachMax).map(message);
  return [...messages, ...remainder(total - messages.length, others)];
}

function remainder(number: number, what: string): string[] {
  return number > 0 ? [`${number} more ${what}.`] : [];
}

function nameOf({ topic, subscription }: SampledSubscription): string {
  return `${subscription} (topic ${topic})`;
}

function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}

/** A duration as people say it: two digits are enough. */
export function ageOf(seconds: number): string {
  if (seconds < 10) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}
