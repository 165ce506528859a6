import { type AcceptRange, readAccept } from '#runtime/accept.ts';

/**
 * Whether who asks would rather have HTML than JSON, by RFC 9110 section 12.5.1; it has to say so: where both are as welcome,
 * as to curl, it is JSON.
 * @param accept the header as it came
 */
export function prefersHtml(accept: string | undefined): boolean {
  const ranges = readAccept(accept);
  return qualityOf('text/html', ranges) > qualityOf('application/json', ranges);
}

/** The most specific range that fits decides. */
function qualityOf(type: string, ranges: readonly AcceptRange[]): number {
  const [family] = type.split('/', 1);
  for (const wanted of [type, `${family}/*`, '*/*']) {
    const range = ranges.find((each) => each.type === wanted);
    if (range !== undefined) return range.quality;
  }
  return 0;
}
