import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { guardProcess } from './process-guard.ts';

/** A page that a real Chromium has loaded. */
export interface BrowserPage {
  /** HTTP status of the document. */
  readonly status: number;
  /** Challenges of HTTP authentication that came before it. */
  readonly challenges: readonly string[];
  /** What the browser complains about: what a policy refused, what could not be loaded. */
  readonly complaints: readonly string[];
  /** Everything that it asked for, the page included. */
  readonly requests: readonly string[];
  /** The value of an expression in the page. */
  evaluate<Value>(expression: string): Promise<Value>;
  /** Shows the page as for somebody who prefers this. */
  preferColors(scheme: 'light' | 'dark'): Promise<void>;
}

export interface OpenOptions {
  /** Answer to a challenge; without one it is refused, as by a person who cancels. */
  readonly password?: string;
  /** Whether pages may run scripts (true). */
  readonly scripts?: boolean;
}

type Params = Readonly<Record<string, unknown>>;
// oxlint-disable-next-line typescript/no-explicit-any -- the protocol's own shapes, read where they are expected
type Result = any;
type Listener = (method: string, params: Result) => void;

/** A headless Chromium with an empty profile, over the DevTools protocol. */
export class Chromium implements AsyncDisposable {
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, PromiseWithResolvers<Result>>();
  readonly #listeners = new Map<string, Listener>();
  readonly #end: () => Promise<void>;
  #lastId = 0;

  private constructor(socket: WebSocket, end: () => Promise<void>) {
    this.#socket = socket;
    this.#end = end;
    socket.addEventListener('message', ({ data }) => this.#receive(String(data)));
  }

  static async start(): Promise<Chromium> {
    const profile = await mkdtemp(join(tmpdir(), 'broker-chromium-'));
    // As root there is no sandbox; /dev/shm of a container is small.
    const child = spawn(
      'chromium',
      [
        '--headless',
        '--no-sandbox',
        '--disable-dev-shm-usage',
        '--disable-gpu',
        '--no-first-run',
        '--disable-background-networking',
        '--remote-debugging-port=0',
        `--user-data-dir=${profile}`,
        'about:blank',
      ],
      { detached: true, stdio: ['ignore', 'ignore', 'pipe'] },
    );
    if (child.pid === undefined) throw new Error('chromium cannot be started');
    const { pid } = child;
    const dismissGuard = guardProcess(pid);
    const ended = once(child, 'exit');
    const end = async (): Promise<void> => {
      process.kill(-pid, 'SIGKILL');
      await ended;
      dismissGuard();
      await rm(profile, { recursive: true, force: true, maxRetries: 10 });
    };
    for await (const line of createInterface(child.stderr)) {
      const url = /DevTools listening on (ws:\S+)/.exec(line)?.[1];
      if (url === undefined) continue;
      child.stderr.resume();
      const socket = new WebSocket(url);
      await once(socket, 'open');
      return new Chromium(socket, end);
    }
    throw new Error(`chromium has ended: ${String(await ended)}`);
  }

  /** Loads a page as somebody who was never there, and waits until everything that it needs is there. */
  async open(url: string, { password, scripts = true }: OpenOptions = {}): Promise<BrowserPage> {
    const { browserContextId } = await this.#call('Target.createBrowserContext');
    const { targetId } = await this.#call('Target.createTarget', {
      url: 'about:blank',
      browserContextId,
    });
    const { sessionId } = await this.#call('Target.attachToTarget', { targetId, flatten: true });
    const call = (method: string, params?: Params) => this.#call(method, params, sessionId);
    const seen = { status: 0, challenges: [], complaints: [], requests: [] } as Seen;
    const loaded = Promise.withResolvers<void>();
    this.#listeners.set(sessionId, (method, params) => {
      if (method === 'Page.loadEventFired') loaded.resolve();
      note(seen, method, params);
      answer(call, { method, params, password });
    });
    await Promise.all([call('Page.enable'), call('Log.enable'), call('Network.enable')]);
    await call('Fetch.enable', { handleAuthRequests: true });
    await call('Emulation.setScriptExecutionDisabled', { value: !scripts });
    await call('Page.navigate', { url });
    await loaded.promise;
    return {
      ...seen,
      get status() {
        return seen.status;
      },
      async evaluate(expression) {
        const { result, exceptionDetails } = await call('Runtime.evaluate', {
          expression,
          returnByValue: true,
        });
        if (exceptionDetails !== undefined) throw new Error(exceptionDetails.exception.description);
        return result.value;
      },
      async preferColors(value) {
        const features = [{ name: 'prefers-color-scheme', value }];
        await call('Emulation.setEmulatedMedia', { features });
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.close();
    await this.#end();
  }

  async #call(method: string, params: Params = {}, sessionId?: string): Promise<Result> {
    const id = ++this.#lastId;
    const answered = Promise.withResolvers<Result>();
    this.#waiting.set(id, answered);
    this.#socket.send(JSON.stringify({ id, method, params, sessionId }));
    return answered.promise;
  }

  #receive(text: string): void {
    const { id, method, params, result, error, sessionId } = JSON.parse(text) as Result;
    if (id === undefined) {
      this.#listeners.get(sessionId)?.(method, params);
      return;
    }
    const answered = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) answered?.resolve(result);
    else answered?.reject(new Error(error.message));
  }
}

interface Seen {
  status: number;
  readonly challenges: string[];
  readonly complaints: string[];
  readonly requests: string[];
}

function note(seen: Seen, method: string, params: Result): void {
  switch (method) {
    case 'Log.entryAdded':
      seen.complaints.push(params.entry.text);
      break;
    case 'Network.requestWillBeSent':
      seen.requests.push(params.request.url);
      break;
    case 'Network.responseReceived':
      if (params.type === 'Document') seen.status = params.response.status;
      break;
    case 'Fetch.authRequired':
      seen.challenges.push(`${params.authChallenge.scheme} ${params.authChallenge.realm}`);
  }
}

/** Lets requests through, and answers a challenge once. */
function answer(
  call: (method: string, params?: Params) => Promise<unknown>,
  { method, params, password }: { method: string; params: Result; password: string | undefined },
): void {
  const { requestId } = params;
  if (method === 'Fetch.requestPaused') void call('Fetch.continueRequest', { requestId });
  if (method !== 'Fetch.authRequired') return;
  const authChallengeResponse =
    password === undefined
      ? { response: 'CancelAuth' }
      : { response: 'ProvideCredentials', username: 'anybody', password };
  void call('Fetch.continueWithAuth', { requestId, authChallengeResponse });
}
