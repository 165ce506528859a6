// Names of other programs that are near one of ours without being a misspelling of it.
const foreignNames = new Set([
  'APP_KEY',
  'DATA_DIRS',
  'GHOST',
  'HOME',
  'HOSTNAME',
  'HOSTTYPE',
  'LOG_LEVELS',
  'OTEL_BLRP_MAX_EXPORT_BATCH_SIZE',
  'OTEL_BLRP_MAX_QUEUE_SIZE',
  'OTEL_BLRP_SCHEDULE_DELAY',
  'PATH',
  'POST',
  'SORT',
]);

/**
 * The known name that `name` was probably meant to be, or `undefined`. Near is: the same letters
 * apart from case and underscores; the same time with another unit or none; at most two letters wrong, missing, too many or swapped in a
 * name of nine letters or more; at most one in a shorter one.
 */
export function findMisspelt(name: string, known: readonly string[]): string | undefined {
  if (known.includes(name) || foreignNames.has(name.toUpperCase())) return undefined;
  const letters = lettersOf(name);
  const upper = name.toUpperCase();
  const withUnit = upper.replace(/_(S|SEC|SECONDS|MILLIS|MILLISECONDS)$/, '') + '_MS';
  const same = known.find((each) => lettersOf(each) === letters || each === withUnit);
  if (same !== undefined) return same;
  let best: { name: string; distance: number } | undefined;
  for (const candidate of known) {
    const most = candidate.length >= 9 ? 2 : 1;
    if (Math.abs(candidate.length - upper.length) > most) continue;
    const distance = editDistance(upper, candidate);
    if (distance <= most && (best === undefined || distance < best.distance)) {
      best = { name: candidate, distance };
    }
  }
  return best?.name;
}

function lettersOf(name: string): string {
  return name.toUpperCase().replaceAll('_', '');
}

/** Letters to change, add, leave out or swap with their neighbour to get from `a` to `b`. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row += 1) {
    const current = [row];
    for (let column = 1; column <= b.length; column += 1) {
      const isSame = a[row - 1] === b[column - 1];
      const isSwap = a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1];
      current[column] = Math.min(
        (last[column] ?? 0) + 1,
        (current[column - 1] ?? 0) + 1,
        (last[column - 1] ?? 0) + (isSame ? 0 : 1),
        isSwap ? (beforeLast[column - 2] ?? 0) + 1 : Infinity,
      );
    }
    beforeLast = last;
    last = current;
  }
  return last[b.length] ?? 0;
}
