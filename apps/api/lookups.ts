import type { Directory, DirectorySubscription, DirectoryTopic } from './directory.ts';
import { Problem } from './problems.ts';

/** The topic of a name, or the problem `topic_not_found`. */
export async function topicOf(
  directory: Pick<Directory, 'topic'>,
  name: string,
): Promise<DirectoryTopic> {
  const topic = await directory.topic(name);
  if (topic === undefined) throw noTopic(name);
  return topic;
}

/** The subscription of a name, or the problem `subscription_not_found`. */
export async function subscriptionOf(
  directory: Pick<Directory, 'subscription'>,
  name: string,
): Promise<DirectorySubscription> {
  const subscription = await directory.subscription(name);
  if (subscription === undefined) throw noSubscription(name);
  return subscription;
}

/** The subscription of a name, to receive from: or a problem that says why not. */
export async function pullSubscriptionOf(
  directory: Pick<Directory, 'subscription'>,
  name: string,
): Promise<DirectorySubscription> {
  const subscription = await subscriptionOf(directory, name);
  if (subscription.type === 'pull') return subscription;
  const detail = `${name} is pushed to its endpoint: there is nothing to receive, nor to settle.`;
  throw new Problem('subscription_is_push', detail);
}

/** There is no topic of this name. */
export function noTopic(name: string): Problem {
  return new Problem('topic_not_found', `There is no topic ${name}.`);
}

/** There is no subscription of this name. */
export function noSubscription(name: string): Problem {
  return new Problem('subscription_not_found', `There is no subscription ${name}.`);
}
