// The status page in a real Chromium, of a broker whose processes run.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Chromium } from '../support/chromium.ts';
import { Cluster } from '../support/cluster.ts';
import { cloneDatabase, query } from '../support/database.ts';
import { whyNotThere } from '../support/debian-package.ts';
import { eventually } from '../support/eventually.ts';

const missing = await whyNotThere('chromium', 'chromium');
if (missing !== undefined) process.stdout.write(`without Chromium: ${missing}\n`);

describe.skipIf(missing !== undefined)('in Chromium', () => {
  const resources = new AsyncDisposableStack();
  let cluster: Cluster;
  let chromium: Chromium;
  let url: string;
  let databaseUrl: string;

  beforeAll(async () => {
    const database = resources.use(await cloneDatabase());
    databaseUrl = database.url;
    cluster = resources.use(await Cluster.start({ databaseUrl }));
    chromium = resources.use(await Chromium.start());
    url = `${cluster.urls[0]}/api/status`;
  });
  afterAll(async () => resources.disposeAsync());

  async function call(route: string, body: unknown): Promise<void> {
    const [method = '', path = ''] = route.split(' ');
    const headers = {
      authorization: `Bearer ${cluster.adminKey}`,
      'content-type': 'application/json',
    };
    const init = { method, headers, body: JSON.stringify(body) };
    const response = await fetch(`${cluster.urls[0]}${path}`, init);
    if (!response.ok) throw new Error(`${route}: ${response.status} ${await response.text()}`);
  }

  const heading = 'document.querySelector("h1").textContent';
  const problems = '[...document.querySelectorAll("ul.problems li")].map((li) => li.innerText)';

  test('the browser is asked for the key, and shows what is so, without a script and without a complaint', async () => {
    const open = () => chromium.open(url, { password: cluster.adminKey, scripts: false });
    const page = await eventually(async () => {
      const found = await open();
      expect(await found.evaluate(heading)).toBe('Nothing is known to be wrong');
      return found;
    });
    expect(page.status).toBe(200);
    expect(page.challenges).toEqual(['basic event-broker']);
    // of the first answer, which asked for the key
    expect(page.complaints.filter((text) => !text.includes('401'))).toEqual([]);
    expect(new Set(page.requests.filter((each) => !each.startsWith('data:')))).toEqual(
      new Set([url]),
    );
    expect(await page.evaluate('document.title')).toBe(
      'Nothing is known to be wrong · Event Broker',
    );
    expect(
      await page.evaluate('[...document.querySelectorAll("tbody th")].map((th) => th.innerText)'),
    ).toEqual(['api-1', 'reaper-1']);
  });

  test('what is wrong stands first, in words; its style is taken, dark and light', async () => {
    await call('PUT /api/v1/topics/orders', { max_backlog: 1 });
    await call('PUT /api/v1/subscriptions/billing', { topic: 'orders', type: 'pull' });
    await call('POST /api/v1/topics/orders/events', { type: 'a' });
    await cluster.reapers[0]!.stop();
    const page = await eventually(async () => {
      const found = await chromium.open(url, { password: cluster.adminKey });
      expect(await found.evaluate(problems)).toHaveLength(2);
      return found;
    });
    const messages = await page.evaluate<string[]>(problems);
    expect(messages[0]).toMatch(
      /^No reaper runs: leases that ran out are not taken back.*no_leader$/,
    );
    expect(messages[1]).toMatch(/^The topic orders is full: producers get 503\..*topic_full$/);
    const follows = 'document.querySelector("h1").nextElementSibling.className';
    expect(await page.evaluate(follows)).toBe('problems');
    const colors = async (): Promise<string> =>
      page.evaluate('getComputedStyle(document.querySelector("h1")).color');
    await page.preferColors('light');
    expect(await colors()).toBe('rgb(179, 38, 30)');
    await page.preferColors('dark');
    expect(await colors()).toBe('rgb(255, 138, 128)');
    await cluster.reapers[0]!.start();
  });

  test('names from elsewhere are shown and not run', async () => {
    const name = '<img src=x onerror="document.title=1">';
    await query(
      databaseUrl,
      `insert into broker.worker (instance, service, version, host, pid) values ('${name}', 'api', '9', 'h', 1)`,
    );
    const page = await chromium.open(url, { password: cluster.adminKey });
    expect(await page.evaluate('document.images.length + document.scripts.length')).toBe(0);
    expect(await page.evaluate('document.body.innerText')).toContain(name);
  });

  test('who gives no key is told so in words', async () => {
    const page = await chromium.open(url);
    expect(page.status).toBe(401);
    expect(await page.evaluate(heading)).toBe('A valid API key is needed');
    expect(await page.evaluate('document.body.innerText')).not.toContain('orders');
  });
});
