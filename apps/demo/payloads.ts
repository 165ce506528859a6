import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { elementSpans, memberSpans, valueSpan } from './json-spans.ts';

/** The body of one real webhook of GitHub. */
export interface Payload {
  /** `github.<event>.<action>`, or `github.<event>` for what has no actions. */
  readonly type: string;
  /** Full name of the repository that it is about. */
  readonly subject: string | undefined;
  /** JSON text as the package has it, with its line breaks. */
  readonly text: string;
}

interface Example {
  readonly action?: unknown;
  readonly repository?: { readonly full_name?: unknown } | null;
}

/** All examples of the package: those of github.com and of each release of GitHub Enterprise Server. */
export function loadPayloads(): Payload[] {
  const packageFile = createRequire(import.meta.url).resolve(
    '@octokit/webhooks-examples/package.json',
  );
  const folder = dirname(packageFile);
  return readdirSync(folder)
    .toSorted()
    .map((name) => join(folder, name, 'index.json'))
    .filter((file) => existsSync(file))
    .flatMap((file) => payloadsOf(readFileSync(file, 'utf8')));
}

function payloadsOf(text: string): Payload[] {
  const events = JSON.parse(text) as { name: string; examples: Example[] }[];
  const spans = elementSpans(text, valueSpan(text));
  return events.flatMap(({ name, examples }, index) => {
    const members = memberSpans(text, spans[index] ?? valueSpan(text));
    const exampleSpans = elementSpans(text, members.get('examples') ?? valueSpan(text));
    return examples.map((example, at) => {
      const span = exampleSpans[at] ?? valueSpan(text);
      return {
        type:
          typeof example.action === 'string'
            ? `github.${name}.${example.action}`
            : `github.${name}`,
        subject: subjectOf(example),
        text: text.slice(span.start, span.end),
      };
    });
  });
}

function subjectOf({ repository }: Example): string | undefined {
  return typeof repository?.full_name === 'string' ? repository.full_name : undefined;
}

/** The type that most payloads have. */
export function commonestType(payloads: readonly Payload[]): string {
  const counts = new Map<string, number>();
  for (const { type } of payloads) counts.set(type, (counts.get(type) ?? 0) + 1);
  return [...counts].toSorted(([, a], [, b]) => b - a)[0]?.[0] ?? '';
}
