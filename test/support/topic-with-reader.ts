import { expect } from 'vitest';
import type { Answer, TestApp } from './app.ts';

export interface Message {
  readonly lease_id: string;
  readonly lease_expires_at: string;
  readonly delivery_attempt: number;
  readonly event_id: string;
  readonly published_at: string;
  readonly event: Readonly<Record<string, unknown>>;
}

let count = 0;

/** A topic with one pull subscription, made over HTTP. */
export async function aTopicWithReader(
  app: TestApp,
  settings: object = {},
  readerSettings: object = {},
) {
  count += 1;
  const topic = `topic-${count}`;
  const reader = `reader-${count}`;
  await app.call(`PUT /api/v1/topics/${topic}`, settings);
  const put = await app.call(`PUT /api/v1/subscriptions/${reader}`, {
    topic,
    type: 'pull',
    ...readerSettings,
  });
  expect(put.status, put.text).toBe(201);
  const { id } = (await app.deps.directory.subscription(reader))!;
  /** The answer to a publish. */
  const publish = (body: unknown, headers: Record<string, string> = {}): Promise<Answer> =>
    app.call(`POST /api/v1/topics/${topic}/events`, body, { headers });
  /** Publishes n events; returns their ids. */
  const publishMany = async (events: number): Promise<string[]> => {
    const answer = await publish(
      Array.from({ length: events }, (_, n) => ({ type: 't', data: n })),
    );
    expect(answer.status, answer.text).toBe(202);
    return (answer.json.results as { id: string }[]).map((each) => each.id);
  };
  /** The answer to receive, ack, nack or extend. */
  const post = (verb: string, body?: unknown): Promise<Answer> =>
    app.call(`POST /api/v1/subscriptions/${reader}/${verb}`, body);
  const receive = async (body: object = {}): Promise<Message[]> => {
    const answer = await post('receive', body);
    expect(answer.status, answer.text).toBe(200);
    return answer.json.messages as Message[];
  };
  return { topic, reader, id, publish, publishMany, post, receive };
}

/** The stable code of a problem, and its status. */
export function problemOf(answer: Answer): [number, string] {
  return [answer.status, answer.json.code as string];
}
