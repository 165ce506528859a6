import type { PushSettings } from '#db/subscriptions.ts';
import { isReservedHeader } from '#runtime/reserved-headers.ts';
import { invalidRequest, pointerTo } from './problems.ts';
import type { PatchSubscription, PutSubscription } from './schemas/subscription.ts';

const headersBytesMax = 8192;

/** What a PUT says of pushing, with the defaults filled in. */
export function readPush(push: NonNullable<PutSubscription['push']>): PushSettings {
  return checked({
    endpoint: push.endpoint,
    mode: push.mode ?? 'cloudevents_binary',
    headers: push.headers ?? {},
    timeout_ms: push.timeout_ms ?? 15_000,
  });
}

/** What a PATCH makes of it: members that are given replace those that there are, `headers` as a whole. */
export function mergePush(
  current: PushSettings,
  change: NonNullable<PatchSubscription['push']>,
): PushSettings {
  return checked({ ...current, ...change });
}

function checked(push: PushSettings): PushSettings {
  const names = new Set<string>();
  let bytes = 0;
  for (const [name, value] of Object.entries(push.headers)) {
    const pointer = pointerTo('/push/headers', name);
    if (isReservedHeader(name)) {
      throw invalidRequest(`${name} is set by the broker or the connection.`, pointer);
    }
    if (names.has(name.toLowerCase())) {
      throw invalidRequest(`${name} must be given once, in whatever case.`, pointer);
    }
    names.add(name.toLowerCase());
    bytes += name.length + value.length;
  }
  if (bytes > headersBytesMax) {
    const detail = `headers may have ${headersBytesMax} bytes in all; these have ${bytes}.`;
    throw invalidRequest(detail, '/push/headers');
  }
  return push;
}
