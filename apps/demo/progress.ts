import { Presets, SingleBar } from 'cli-progress';

/** How far something is: a bar on a terminal, otherwise a line for each quarter. */
export interface Progress {
  update(done: number, total: number): void;
  stop(): void;
}

export function startProgress(label: string): Progress {
  return process.stdout.isTTY ? startBar(label) : startLines(label);
}

function startBar(label: string): Progress {
  const bar = new SingleBar(
    { format: `${label.padEnd(10)} {bar} {value}/{total}`, hideCursor: true, etaBuffer: 1 },
    Presets.shades_classic,
  );
  bar.start(1, 0);
  return {
    update(done, total) {
      bar.setTotal(total);
      bar.update(done);
    },
    stop: () => bar.stop(),
  };
}

function startLines(label: string): Progress {
  let quarters = 0;
  return {
    update(done, total) {
      const reached = total === 0 ? 0 : Math.floor((done / total) * 4);
      if (reached <= quarters) return;
      quarters = reached;
      process.stdout.write(`${label}: ${done} of ${total}\n`);
    },
    stop: () => undefined,
  };
}
