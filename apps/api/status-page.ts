import { createHash } from 'node:crypto';
import { markup, Markup } from './markup.ts';
import type { Status } from './schemas/status.ts';
import { ageOf } from './status-problems.ts';

const style = `
:root { color-scheme: light dark; --line: #d0d7de; --bad: #b3261e; --good: #1a6b37; --dim: #57606a; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --bad: #ff8a80; --good: #6fdc8c; --dim: #9da7b3; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h1.bad { color: var(--bad); }
h1.good { color: var(--good); }
ul.problems { border-left: 4px solid var(--bad); list-style: none; margin: 0; padding: 0 0 0 1rem; }
li { margin: .4rem 0; overflow-wrap: anywhere; }
code, .dim { color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1.5rem 0; width: 100%; }
caption { font-weight: 600; padding: .4rem 0; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; overflow-wrap: anywhere; }
.number { font-variant-numeric: tabular-nums; text-align: right; }
.bad { color: var(--bad); }
`;

const styleHash = createHash('sha256').update(style).digest('base64');

/** What the page needs and no more: no script, no form, nothing from elsewhere. An empty icon, so that none is asked for. */
export const pagePolicy = [
  "default-src 'none'",
  `style-src 'sha256-${styleHash}'`,
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

const refreshSeconds = 10;
const processesMax = 100;

/** The status as a page for people: what is wrong in words, then who runs and what waits. It looks again by itself. */
export function renderStatusPage(status: Status): string {
  const { problems, leader, backlog } = status;
  const isWell = problems.length === 0;
  const heading = isWell ? 'Nothing is known to be wrong' : countOf(problems.length, 'problem');
  const main = markup`<h1 class="${isWell ? 'good' : 'bad'}">${heading}</h1>
${problemList(status)}
<p>${leaderLine(leader)}</p>
<p>${backlogLine(backlog)}</p>
${processTable(status)}
${subscriptionTable(status)}
<p class="dim">Answered by ${status.instance}, version ${status.version}; PostgreSQL ${status.server_version}, schema ${status.schema_version}. As of ${status.at}; looks again each ${refreshSeconds} s.</p>`;
  return renderPage(heading, main, { refreshes: true });
}

/** An answer that is not the status: why, in words. */
export function renderProblemPage(problem: {
  readonly title: string;
  readonly detail?: string | undefined;
  readonly code: string;
  readonly status: number;
  readonly requestId: string;
}): string {
  const { title, detail, code, status, requestId } = problem;
  const main = markup`<h1 class="bad">${title}</h1>
<p>${detail ?? ''}</p>
<p class="dim">${status} <code>${code}</code>, request ${requestId}.</p>`;
  return renderPage(title, main, { refreshes: status >= 500 });
}

function renderPage(title: string, main: Markup, { refreshes }: { refreshes: boolean }): string {
  const refresh = markup`<meta http-equiv="refresh" content="${refreshSeconds}">`;
  return markup`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
${refreshes ? refresh : ''}
<link rel="icon" href="data:,">
<title>${title} · Event Broker</title>
<style>${new Markup(style)}</style>
</head>
<body>
<main>
${main}
</main>
</body>
</html>
`.toString();
}

function problemList({ problems }: Status): Markup {
  if (problems.length === 0) return markup``;
  const items = problems.map(
    ({ code, message }) => markup`<li>${message} <code>${code}</code></li>\n`,
  );
  return markup`<ul class="problems">\n${items}</ul>`;
}

function leaderLine({ holder, term, elected_at: electedAt }: Status['leader']): string {
  if (holder === null) return `Nobody leads; the last term was ${term}.`;
  return `${holder} leads in term ${term}${electedAt === null ? '' : `, since ${electedAt}`}.`;
}

function backlogLine(backlog: Status['backlog']): string {
  const { oldest_waiting_seconds: oldest, sample_age_seconds: age } = backlog;
  return [
    `${countOf(backlog.waiting_events, 'event')} waiting, ${backlog.leased_events} leased, `,
    countOf(backlog.dead_letters, 'dead letter'),
    oldest === null ? '' : `; the oldest has been due for ${ageOf(oldest)}`,
    age === null ? '' : ` (sampled ${ageOf(age)} ago)`,
    '.',
  ].join('');
}

function processTable({ processes }: Status): Markup {
  const shown = processes.slice(0, processesMax);
  return table({
    caption: `Processes${moreThan(processes.length, shown.length)}`,
    head: 'instance,service,version,host,#pid,started,#heard of ago,state'.split(','),
    rows: shown.map((each) => [
      each.instance,
      each.service,
      each.version,
      each.host,
      each.pid,
      each.started_at,
      ageOf(each.heartbeat_age_seconds),
      noteUnless('alive', each.state),
    ]),
    none: 'None has ever said that it runs.',
  });
}

function subscriptionTable({ subscriptions, subscriptions_total: total }: Status): Markup {
  return table({
    caption: `Subscriptions with most waiting${moreThan(total, subscriptions.length)}`,
    head: 'subscription,topic,type,state,#waiting,#leased,#oldest due,#dead letters'.split(','),
    rows: subscriptions.map((each) => [
      each.subscription,
      each.topic,
      each.type,
      noteUnless('active', each.state),
      each.waiting_events,
      each.leased_events,
      each.oldest_waiting_seconds === null ? '' : ageOf(each.oldest_waiting_seconds),
      each.dead_letters,
    ]),
    none: 'There is none, or none was sampled yet.',
  });
}

function noteUnless(usual: string, state: string): Markup | string {
  return state === usual ? state : markup`<span class="bad">${state}</span>`;
}

interface Table {
  readonly caption: string;
  /** One that begins with # is over numbers. */
  readonly head: readonly string[];
  readonly rows: readonly (readonly (Markup | string | number)[])[];
  /** What is said instead of an empty table. */
  readonly none: string;
}

function table({ caption, head, rows, none }: Table): Markup {
  if (rows.length === 0) return markup`<p>${caption}: ${none}</p>`;
  const names = head.map(
    (name, at) => markup`<th scope="col"${alignment(head, at)}>${name.replace('#', '')}</th>`,
  );
  const lines = rows.map((row) => {
    const [first = '', ...others] = row;
    const cells = others.map((cell, at) => markup`<td${alignment(head, at + 1)}>${cell}</td>`);
    return markup`<tr><th scope="row">${first}</th>${cells}</tr>\n`;
  });
  return markup`<div class="wide"><table>
<caption>${caption}</caption>
<thead><tr>${names}</tr></thead>
<tbody>
${lines}</tbody>
</table></div>`;
}

function alignment(head: readonly string[], at: number): Markup {
  return head[at]?.startsWith('#') === true ? markup` class="number"` : markup``;
}

function moreThan(total: number, shown: number): string {
  return total > shown ? ` (the first ${shown} of ${total})` : '';
}

function countOf(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}
