export interface RepeatLimitOptions {
  /** Lines with one message that are written in a window (20). */
  readonly linesMax?: number;
  /** Length of a window, which begins with the first line of a message, in milliseconds (10,000). */
  readonly windowMs?: number;
  /** Messages that are told apart at a time (500); beyond it all new ones are counted as one. */
  readonly messagesMax?: number;
}

/** Says, when a window ends, how many lines were not written in it. */
export type Summarize = (suppressed: number, windowMs: number) => void;

interface Window {
  lines: number;
  suppressed: number;
  readonly summarize: Summarize;
  readonly timer: NodeJS.Timeout;
}

const others = '';

/**
 * Keeps a log readable, and a disk from being filled, when something goes wrong again and again: of each message so many
 * lines are written in a window, and after it one that says how many were not.
 */
export class RepeatLimit {
  readonly #options: Required<RepeatLimitOptions>;
  readonly #windows = new Map<string, Window>();
  #unreported = 0;
  #listener: ((count: number) => void) | undefined;

  constructor(options: RepeatLimitOptions = {}) {
    this.#options = { linesMax: 20, windowMs: 10_000, messagesMax: 500, ...options };
  }

  /**
   * Whether one more line with this message is to be written.
   * @param summarize kept from the first line of a window on, and called at its end where lines were suppressed
   */
  admits(message: string, summarize: Summarize): boolean {
    const window = this.#windowOf(message, summarize);
    window.lines += 1;
    if (window.lines <= this.#options.linesMax) return true;
    window.suppressed += 1;
    if (this.#listener === undefined) this.#unreported += 1;
    else this.#listener(1);
    return false;
  }

  /** Who counts the lines that were suppressed; is told of those before it, too. */
  onSuppressed(listener: (count: number) => void): void {
    this.#listener = listener;
    if (this.#unreported > 0) listener(this.#unreported);
    this.#unreported = 0;
  }

  /** Ends all windows now: the process is about to end. */
  flush(): void {
    for (const message of this.#windows.keys()) this.#end(message);
  }

  #windowOf(message: string, summarize: Summarize): Window {
    const { messagesMax, windowMs } = this.#options;
    const isFull = this.#windows.size >= messagesMax && !this.#windows.has(message);
    const key = isFull ? others : message;
    const known = this.#windows.get(key);
    if (known !== undefined) return known;
    const timer = setTimeout(() => this.#end(key), windowMs);
    timer.unref();
    const window = { lines: 0, suppressed: 0, summarize, timer };
    this.#windows.set(key, window);
    return window;
  }

  #end(message: string): void {
    const window = this.#windows.get(message);
    if (window === undefined) return;
    clearTimeout(window.timer);
    this.#windows.delete(message);
    if (window.suppressed > 0) window.summarize(window.suppressed, this.#options.windowMs);
  }
}

/**
 * What lines about the same thing have in common: the message without numbers and quoted parts, and the words of closed sets
 * that stand beside it.
 */
export function commonPart(level: number, message: string, members: unknown): string {
  const text = message
    .slice(0, 200)
    .replaceAll(/"[^"]*"|'[^']*'/g, '?')
    .replaceAll(/\d+/g, '#');
  const words = ['code', 'outcome'].map((name) => {
    const word = (members as Readonly<Record<string, unknown>> | null | undefined)?.[name];
    return typeof word === 'string' ? word.slice(0, 50) : '';
  });
  return [level, text, ...words].join('|');
}
