import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';

import type { Labels } from './alert-inhibitions.ts';

/** One request of Alertmanager's. */
export interface SentAlerts {
  /** `/` and the name of the receiver. */
  readonly path: string;
  readonly alerts: readonly { readonly labels: Labels; readonly annotations: Labels }[];
}

export interface AlertReceiver extends AsyncDisposable {
  readonly url: string;
  readonly sent: readonly SentAlerts[];
}

const names = ['page', 'ticket', 'note', 'watchdog'];

/** A server that takes what is sent to the receivers. */
export async function startAlertReceiver(): Promise<AlertReceiver> {
  const sent: SentAlerts[] = [];
  const server = createServer((request, response) => {
    void json(request).then((body) => {
      sent.push({ path: request.url ?? '', ...(body as Omit<SentAlerts, 'path'>) });
      response.end();
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    sent,
    url,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

/** A RECEIVERS_FILE that sends everything to it. */
export function receiversAt(url: string): string {
  const lines = names.map(
    (name) => `  - name: ${name}\n    webhook_configs: [{ url: '${url}/${name}' }]\n`,
  );
  return `receivers:\n${lines.join('')}`;
}
